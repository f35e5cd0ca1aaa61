"""The speed of a stage's step: engine, data and step of a run, in steady state. Nothing is written but indexes.

Enters: a configuration. Leaves: a `Speed`. FLOPs are those of `costs/flops.py`, of the work that is needed
(MFU), or of what is computed again too (HFU), against what this machine's matrix products reach at the
model's own shapes, and against the GPU's data sheet where it is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_train.batch.packed import PackedBatch
from llava_train.config.gpus import GPUS
from llava_train.config.schema import BenchConfig, Config
from llava_train.costs.dims import ModelDims, read_dims
from llava_train.costs.flops import SampleCost, needed_cost, sample_cost
from llava_train.costs.memory import activations, states
from llava_train.data.loading.steps import StepBatches
from llava_train.model.forward.cpu_bf16 import lacks_bf16
from llava_train.model.loading.load_model import DTYPES
from llava_train.ranks.process_group import Ranks
from llava_train.ranks.signals import StopSignal
from llava_train.shared.host_memory import peak_memory, restart_peak
from llava_train.train.build import build_data, build_model, build_trainer
from llava_train.train.checkpoint.state import StepCounts
from llava_train.train.run.stages import all_stages
from llava_train.train.step import StepResult, count, train_step

STEP_PARTS = ("forward", "backward", "optimizer")
PROFILED = 1  # step
OPERATORS = 60  # in the table of a profile
TRIALS = 5  # of a matrix product, of which the fastest counts


@dataclass(frozen=True)
class Speed:
    """Over all ranks, but for what is said to be of one. FLOPs a second are of one rank."""

    stage: str
    precision: str
    device: str
    world_size: int
    steps: int
    samples_per_second: float
    tokens_per_second: float  # without padding, since there is none
    supervised_per_second: float
    flops: float  # that are needed
    executed: float  # with what is computed again
    products: float  # FLOPs a second of the model's matrix products, measured
    stated: float  # by the GPU's data sheet, 0 where unknown
    mfu: float  # flops / products
    hfu: float  # executed / products
    data_wait: float  # share of the time, of the first rank
    seconds_per_step: float
    parts: dict[str, float]  # seconds of a step by part, measured in further steps
    peak_memory: int  # bytes, of the fullest rank
    planned_memory: float  # bytes that costs/memory.py expects of it, on a GPU
    loss: float  # of the last step


class Bench:
    """A stage's trainer, taken step by step."""

    def __init__(self, config: Config, ranks: Ranks, stop: StopSignal):
        """The stage `bench.stage`, or the last; it starts from the run's own model, whatever was trained before it."""
        name = config.bench.stage or list(config.stages)[-1]
        [stage] = [replace(stage, start=config.model) for stage in all_stages(config) if stage.name == name]
        loaded = build_model(config, stage, ranks)
        self.dims: ModelDims = read_dims(loaded.model.config)
        self.data = build_data(config, stage, loaded, ranks)
        self.stage, self.ranks = stage, ranks
        self._trainer = build_trainer(config, stage, loaded, self.data, ranks, stop)
        self.engine = self._trainer.engine
        self.engine.set_learning_rates(1.0)

    def step(self, item: StepBatches) -> tuple[StepCounts, StepResult]:
        counts = count(item, self._trainer.guard)
        return counts, train_step(self.engine, item.batches, counts, self.ranks)

    @staticmethod
    def flops(batches: list[PackedBatch], cost: SampleCost) -> float:
        """Of this rank's micro-batches."""
        lengths = np.concatenate([np.diff(batch.cu_seqlens.numpy()) for batch in batches])
        tiles, supervised = np.zeros_like(lengths), np.zeros_like(lengths)
        tiles[0] = sum(len(batch.pixel_values) for batch in batches)  # tiles and labels add up linearly
        supervised[0] = sum(batch.num_supervised for batch in batches)
        return float(cost(lengths, tiles, supervised).sum())

    def planned(self, batches: list[PackedBatch]) -> float:
        """Bytes on this rank's GPU as `plan` expects them: the states, and the activations of the largest pack."""
        stage = self.stage.settings
        sizes = [(len(b.input_ids), len(b.pixel_values), b.num_supervised) for b in batches]
        packs = activations(self.dims, stage, self._trainer.recomputed, *np.array(sizes).T)
        return states(self.dims, stage, stage.zero, self.ranks.world_size).gpu + float(packs.max())

    def run(self, settings: BenchConfig) -> Speed:
        """Warm-up steps, measured ones, then as many again, at most ten, with the clock on their parts; a profile."""
        clocked, profiled = min(settings.steps, 10), PROFILED if settings.profile else 0
        items = self.data.step_batches(0, settings.warmup + settings.steps + clocked + profiled)
        for _ in range(settings.warmup):
            self.step(next(items))
        self._restart_peak()
        counted, waited = np.zeros(3), 0.0
        seen: list[PackedBatch] = []
        began = self._now()
        for _ in range(settings.steps):
            asked = time.perf_counter()
            item = next(items)
            waited += time.perf_counter() - asked
            counts, result = self.step(item)
            counted += counts.num_samples, counts.num_tokens, counts.num_supervised
            seen += item.batches
        seconds = self._now() - began
        peak = max(self.ranks.gather(self._peak()))
        stage, ranks = self.stage.settings, self.ranks.world_size
        needed = needed_cost(self.dims, stage)
        executed_cost = sample_cost(self.dims, stage, self._trainer.recomputed)
        flops, executed = self.ranks.sum(*(self.flops(seen, cost) for cost in (needed, executed_cost)))
        products = product_speed(self.dims, seen, self._device, DTYPES[stage.precision])
        with self._clock() as parts:
            for _ in range(clocked):
                self.step(next(items))
        if profiled:
            self._profile(items, Path(settings.profile))
        samples, tokens, supervised = (counted / seconds).tolist()
        return Speed(
            stage=self.stage.name,
            precision=stage.precision,
            device=device_name(self._device),
            world_size=ranks,
            steps=settings.steps,
            samples_per_second=samples,
            tokens_per_second=tokens,
            supervised_per_second=supervised,
            flops=flops,
            executed=executed,
            products=products,
            stated=stated_peak(self._device),
            mfu=flops / (seconds * products * ranks),
            hfu=executed / (seconds * products * ranks),
            data_wait=waited / seconds,
            seconds_per_step=seconds / settings.steps,
            parts={part: parts[part] / clocked for part in STEP_PARTS},
            peak_memory=peak,
            planned_memory=max(self.ranks.gather(self.planned(seen))),
            loss=result.loss,
        )

    def _profile(self, items: Iterator[StepBatches], file: Path) -> None:
        """Takes the steps that are left; rank 0 writes their trace (for chrome://tracing) and a table of operators."""
        with torch.profiler.profile() as profiler:
            for item in items:
                self.step(item)
        if self.ranks.is_first:
            file.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(file))
            by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=by, row_limit=OPERATORS, max_name_column_width=80)
            file.with_name(f"{file.name}.txt").write_text(table, encoding="utf-8")

    @property
    def _device(self) -> torch.device:
        return self.ranks.device

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _restart_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        restart_peak()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else peak_memory()

    @contextmanager
    def _clock(self) -> Iterator[dict[str, float]]:
        """Adds up the seconds of each part; on a GPU it waits for each, so these steps are slower."""
        seconds, started, module = dict.fromkeys(STEP_PARTS, 0.0), 0.0, self.engine.module

        def start(*_: Any) -> None:
            nonlocal started
            started = self._now()

        def stop(part: str) -> Callable[..., None]:
            def add(*_: Any) -> None:
                seconds[part] += self._now() - started

            return add

        forward_backward, step = self.engine.forward_backward, self.engine.step

        def both(*args: Any, **kwargs: Any) -> torch.Tensor:
            began, before = self._now(), seconds["forward"]
            loss = forward_backward(*args, **kwargs)
            seconds["backward"] += self._now() - began - (seconds["forward"] - before)
            return loss

        def update() -> float:
            start()
            norm = step()
            stop("optimizer")()
            return norm

        hooks = [module.register_forward_pre_hook(start), module.register_forward_hook(stop("forward"))]
        self.engine.forward_backward, self.engine.step = both, update  # type: ignore[method-assign]
        yield seconds
        self.engine.forward_backward, self.engine.step = forward_backward, step  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def product_speed(dims: ModelDims, batches: list[PackedBatch], device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of the model's matrix products, forward and both backwards, at the sizes of a mean micro-batch.

    In fp32 where the CPU has no bf16, as the model multiplies there.
    """
    if lacks_bf16(torch.empty(0, device=device, dtype=dtype)):
        dtype = torch.float32
    tokens, tiles, supervised = (
        max(1, round(float(np.mean([measure(batch) for batch in batches]))))
        for measure in (lambda b: len(b.input_ids), lambda b: len(b.pixel_values), lambda b: b.num_supervised)
    )
    work = spent = 0.0
    for (rows, width, out), number in products_of(dims, tokens, tiles, supervised).items():
        x, weight, grad = (
            torch.randn(shape, device=device).to(dtype) for shape in ((rows, width), (out, width), (rows, out))
        )
        work += number * 6.0 * rows * width * out
        for product in (lambda: x @ weight.t(), lambda: grad @ weight, lambda: grad.t() @ x):  # noqa: B023
            spent += number * _fastest(product, device)
    return work / spent


def products_of(dims: ModelDims, tokens: int, tiles: int, supervised: int) -> dict[tuple[int, int, int], int]:
    """How often a forward multiplies [rows, width] by [out, width] transposed; attention and patch embedding left out.

    Worked case: queries and what leaves attention are both [tokens, hidden] by [hidden, hidden] where heads times
    their width is `hidden`, so that this key counts twice a layer.
    """
    patches, queries, keys = tiles * dims.patches, dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    listed = [
        ((patches, dims.tower_hidden, dims.tower_hidden), 4 * dims.tower_layers),
        ((patches, dims.tower_hidden, dims.tower_intermediate), dims.tower_layers),
        ((patches, dims.tower_intermediate, dims.tower_hidden), dims.tower_layers),
        ((patches, dims.tower_hidden, dims.hidden), 1),
        ((patches, dims.hidden, dims.hidden), 1),
        ((tokens, dims.hidden, queries), dims.layers),
        ((tokens, dims.hidden, keys), 2 * dims.layers),
        ((tokens, queries, dims.hidden), dims.layers),
        ((tokens, dims.hidden, dims.intermediate), 2 * dims.layers),
        ((tokens, dims.intermediate, dims.hidden), dims.layers),
        ((supervised, dims.hidden, dims.vocab), 1),
    ]
    numbers: dict[tuple[int, int, int], int] = {}
    for shape, number in listed:
        numbers[shape] = numbers.get(shape, 0) + number
    return numbers


def _fastest(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    seconds = []
    for _ in range(TRIALS + 1):  # the first is not counted
        began = time.perf_counter()
        product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def device_name(device: torch.device) -> str:
    threads = f"CPU, {torch.get_num_threads()} thread(s)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else threads


def stated_peak(device: torch.device) -> float:
    """Dense bf16 FLOPs a second by the data sheet; 0 where the device is not among those known."""
    name = device_name(device).lower().replace(" ", "")
    return next((gpu.peak for key, gpu in GPUS.items() if device.type == "cuda" and key in name), 0.0)
