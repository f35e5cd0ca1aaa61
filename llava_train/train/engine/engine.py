"""All of DeepSpeed: the training module in, one optimiser step at a time out.

Precision, ZeRO level and offload are decided here and nowhere else. The optimiser is built in Python and passed in: an
`optimizer` block in DeepSpeed's own configuration would replace the parameter groups and their learning rates.
"""

from __future__ import annotations

import gc
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import OptimizerConfig, StageConfig
from llava_train.model.files.tensor_files import SlicedFiles
from llava_train.model.loading.lazy_weights import read_weight, unread
from llava_train.ranks.deepspeed_fields import internal
from llava_train.ranks.process_group import Ranks
from llava_train.shared.errors import RunError
from llava_train.train.engine.zero_slices import Slice, frozen_slices, refresh_weights, trained_slices, whole_shape

MODEL_PREFIX = "hf_model."  # of the training module's parameter names; without it they are transformers' own
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")


def _is_plain(stage: StageConfig) -> bool:
    """fp32 without ZeRO: DeepSpeed steps the torch optimiser itself and reports no gradient norm, so we clip."""
    return stage.zero.level == 0 and stage.precision == "fp32"


def _deepspeed_level(stage: StageConfig) -> int:
    """bf16 without ZeRO runs as stage 1, whose optimiser keeps fp32 master weights.

    DeepSpeed's own stage-0 bf16 path unscales gradients by an fp16 loss scale that was never applied (0.19.8: the first
    AdamW update came out at 0.75 of the learning rate).
    """
    return 1 if stage.zero.level == 0 and stage.precision == "bf16" else stage.zero.level


def deepspeed_config(stage: StageConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration with every value set; sizes are elements, as DeepSpeed counts them."""
    zero: dict[str, Any] = {"stage": _deepspeed_level(stage), "overlap_comm": torch.cuda.is_available()}
    if stage.zero.level >= 2:
        zero |= {"contiguous_gradients": True, "reduce_bucket_size": 200_000_000}
    if stage.zero.level == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        }
    if stage.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if stage.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # One row (a pack) is one micro-batch; how many make a step is said before each forward.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": 0.0 if _is_plain(stage) else stage.optimizer.max_grad_norm,
        "bf16": {"enabled": stage.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
    }


class Engine:
    """One stage's trainable module under ZeRO."""

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], stage: StageConfig, ranks: Ranks):
        """`groups`: torch parameter groups, each with `params`, `lr` and `name`."""
        import deepspeed

        self.ranks = ranks
        self.group_names = [group["name"] for group in groups]
        self.base_rates = [float(group["lr"]) for group in groups]
        if stage.zero.offload_optimizer and ranks.device.type == "cuda":
            torch.set_num_threads(host_threads(ranks.environ))
        self._torch_optimizer = build_optimizer(groups, stage.optimizer)
        settings = deepspeed_config(stage, ranks.world_size)
        with redirect_stdout(io.StringIO()):  # DeepSpeed's bf16 optimiser prints its memory a dozen times
            _read_into_shards(module, settings)
            place_buffers(module, ranks.device)
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._torch_optimizer, config=settings)
        self._plain_clip = stage.optimizer.max_grad_norm if _is_plain(stage) else None
        self._level = _deepspeed_level(stage)
        self._place = (ranks.rank, ranks.world_size)
        if self._level >= 2 and not stage.zero.offload_optimizer:
            _take_norms_at_once(self._engine.optimizer, ranks.device)
        self.trained_slices(), self.frozen_slices()  # what DeepSpeed misses shows now, not at the first checkpoint

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        groups = self._engine.optimizer.param_groups
        assert len(groups) == len(self.base_rates), "DeepSpeed regrouped the parameters"
        for group, rate in zip(groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        return {name: rate * factor for name, rate in zip(self.group_names, self.base_rates, strict=True)}

    def forward_backward(self, batch: PackedBatch, num_supervised: float, is_last: bool) -> torch.Tensor:
        """Adds the gradient of (loss sum of `batch`) / `num_supervised`; returns the loss sum, detached, fp32 scalar.

        `num_supervised` counts the whole step over all ranks. DeepSpeed averages over ranks, hence the factor.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        loss_sum = self._engine(batch)
        self._engine.backward(loss_sum * (self.ranks.world_size / num_supervised), scale_wrt_gas=False)
        return loss_sum.detach()

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[PackedBatch], torch.Tensor]]:
        """Gives the forward to a loss sum, fp32 scalar, without gradient or dropout; every rank calls it as often."""
        self._engine.eval()
        with torch.no_grad():
            yield self._engine
        self._engine.train()

    def gradient_norms(self, part_of: Mapping[str, str]) -> dict[str, float]:
        """Norm of the step's unclipped gradient per part, before `step`; every rank takes part. Meant for one step."""
        from deepspeed.utils import safe_get_full_grad

        squares = dict.fromkeys(part_of.values(), 0.0)
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                grad = safe_get_full_grad(parameter) if self._plain_clip is None else parameter.grad
                if grad is not None:
                    squares[part_of[name]] += float(grad.detach().float().square().sum())
        return {part: math.sqrt(square) for part, square in squares.items()}

    def step(self) -> float:
        """Clips, updates, clears the gradients; returns the gradient norm before clipping.

        Where this norm is not finite, weights and optimiser stay as they were: DeepSpeed reads it before it updates, at
        each level and in both precisions. It is the same on every rank.
        """
        if self._plain_clip is None:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._plain_clip))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def close(self) -> None:
        """Lets go of weights, gradients and optimiser state; engine and module are of no use from here on.

        DeepSpeed 0.19.8 holds the module from a list and a cache that outlive the engine, and from the parameters what
        it has hung on them (level 3 above all), so that a stage's memory would never come back. Both are emptied.
        """
        optimizer, modules = self._engine.optimizer, list(self.module.modules())
        self._engine.destroy()
        for parameter in self.module.parameters():
            vars(parameter).clear()
            parameter.grad = None
            parameter.data = parameter.data.new_empty(0)
        for holder in (*modules, optimizer, self._torch_optimizer, self._engine, self):
            vars(holder).clear()
        gc.collect()

    def trained_slices(self) -> list[Slice]:
        return trained_slices(self._named(), self._engine.optimizer, self._level, *self._place)

    def frozen_slices(self) -> list[Slice]:
        return list(frozen_slices(self._named(), self._level, *self._place))

    def optimizer_state(self, part: Slice) -> dict[str, torch.Tensor]:
        """AdamW's `step`, `exp_avg` and `exp_avg_sq` of the flat tensor in which `part` lies; empty before a step."""
        return self._torch_optimizer.state[part.flat]

    def load(self, weights: SlicedFiles, optimizer: SlicedFiles, step: int, frozen: SlicedFiles | None) -> None:
        """Takes over the state that any number of ranks wrote at any ZeRO level. Every rank calls it.

        weights, frozen: by parameter name, frozen None where the module holds them already; optimizer: `exp_avg/NAME`,
        `exp_avg_sq/NAME`; step: of AdamW. Raises RunError where their names or shapes are not this module's.
        """
        self._refuse_other_parameters(weights, frozen)
        if self._level == 3:
            internal(self._engine.optimizer, "checkpoint_event_prologue")()  # lets go of gathered parameters
        with torch.no_grad():
            if frozen is not None:
                for part in self.frozen_slices():
                    part.of(part.flat).copy_(_read(frozen, part.name, part))
            states: dict[int, dict[str, torch.Tensor]] = {}
            for part in self.trained_slices():
                part.of(part.flat).copy_(_read(weights, part.name, part))
                state = states.setdefault(id(part.flat), {})
                for kind in MOMENT_NAMES:
                    moment = state.setdefault(kind, torch.zeros_like(part.flat, requires_grad=False))
                    part.of(moment).copy_(_read(optimizer, f"{kind}/{part.name}", part))
                state["step"] = torch.tensor(float(step), device=part.flat.device)
                self._torch_optimizer.state[part.flat] = state
            refresh_weights(self._engine.optimizer, self._level)
        if self._level == 3:
            internal(self._engine.optimizer, "checkpoint_event_epilogue")()

    def _refuse_other_parameters(self, weights: SlicedFiles, frozen: SlicedFiles | None) -> None:
        shapes = {
            n: (whole_shape(p, self._level), p.requires_grad) for n, p in self._named() if frozen or p.requires_grad
        }
        found = [(weights, True), *([(frozen, False)] if frozen else [])]
        saved = {n: (shape, trains) for files, trains in found for n, shape in files.shapes.items()}
        if wrong := sorted(n for n in shapes.keys() | saved.keys() if shapes.get(n) != saved.get(n)):
            raise RunError(f"the checkpoint is of another model, or of other trained parts: {', '.join(wrong[:20])}")

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.module.named_parameters():
            yield name.removeprefix(MODEL_PREFIX), parameter


def _read_into_shards(module: nn.Module, settings: dict[str, Any]) -> None:
    """Reads the weights that are still in their files, one at a time, of which each rank keeps its part (ZeRO 3)."""
    import deepspeed

    convert: Callable[..., None] | None = None
    for parameter in unread(module.parameters()):
        read_weight(parameter)
        if convert is None:
            deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=settings, dtype=parameter.dtype)
            convert = internal(parameter, "convert_to_zero_parameters")
        else:
            convert(param_list=[parameter])


def _take_norms_at_once(optimizer: Any, device: torch.device) -> None:
    """The gradient's norm in a few kernels in place of a dozen for each tensor, during which a GPU would idle.

    On an H200 a step of 700 tensors took the host 120 ms, of AdamW's 7 ms of the GPU. A norm that is not finite stops
    DeepSpeed's update as before, so that its own look at each tensor for that goes too.
    """

    def norm(gradients: list[torch.Tensor], *_: Any) -> torch.Tensor:
        square = nn.utils.get_total_norm(gradients).to(device, torch.float64).square()
        dist.all_reduce(square)
        return square.sqrt().float()

    internal(optimizer, "get_grad_norm_direct"), internal(optimizer, "check_overflow")
    optimizer.get_grad_norm_direct = norm
    optimizer.check_overflow = lambda partition_gradients=True: None  # noqa: ARG005


def place_buffers(module: nn.Module, device: torch.device) -> None:
    """Moves what is no parameter: DeepSpeed does not, where it has made shards of the weights before (ZeRO 3)."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def _read(files: SlicedFiles, name: str, part: Slice) -> torch.Tensor:
    return files.read(name, part.start, part.start + part.numel)


def build_optimizer(groups: list[dict[str, Any]], settings: OptimizerConfig) -> torch.optim.AdamW:
    """One pass over each tensor, on a GPU and, where the state is offloaded, on the host."""
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True)


def host_threads(environ: Mapping[str, str]) -> int:
    """Threads of a rank whose host updates the weights: its share of the cores. torchrun would leave it one."""
    return max(1, len(os.sched_getaffinity(0)) // int(environ.get("LOCAL_WORLD_SIZE", 1)))
