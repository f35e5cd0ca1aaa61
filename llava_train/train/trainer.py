"""The loop of one stage: batches in, optimiser steps, checkpoints, and at the end the Hugging Face folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoTokenizer

from llava_train.config.fingerprint import dump
from llava_train.config.rules.adapter import how_trained
from llava_train.config.schema import Config, StageConfig
from llava_train.costs.dims import read_dims
from llava_train.data.loading.stage_data import StageData
from llava_train.family.base import Geometry
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.check_export import refuse_support
from llava_train.model.hf_folder.folder import write_support
from llava_train.model.hf_folder.preparation import Preparation
from llava_train.model.loading.load_model import DTYPES, LoadedModel
from llava_train.model.prepare.adapter import inject, saved_modules
from llava_train.model.prepare.trained_parts import PartRow, parameter_groups, part_of, part_table, set_trainable
from llava_train.ranks.process_group import Ranks
from llava_train.ranks.signals import Stopped, StopSignal
from llava_train.ranks.step_guard import Guard
from llava_train.ranks.watchdog import Watchdog
from llava_train.shared.console import console
from llava_train.shared.errors import DataError, RunError, counted
from llava_train.train.checkpoint import on_disk
from llava_train.train.checkpoint.state import HELD_OUT_LOSS, StepCounts, TrainState, error_record
from llava_train.train.checkpoint.writer import Saver
from llava_train.train.engine.engine import Engine
from llava_train.train.export.card import start_record
from llava_train.train.export.export import export_adapter, export_checkpoint, report_table
from llava_train.train.held_out_loss import held_out_loss, is_spent, lowest
from llava_train.train.recomputing import choose_layers, set_layers
from llava_train.train.report.metrics import Metrics
from llava_train.train.run.pack_too_large import Fit, PackTooLarge, read_lowered
from llava_train.train.run.stages import (
    ADAPTER,
    EXPORT,
    HELD_OUT_RECORDS,
    RECORDS,
    Stage,
    data_differences,
    finish,
    refuse,
    resume_meta,
)
from llava_train.train.schedule import learning_rate_factor
from llava_train.train.step import StepResult, count, train_step

LISTED_SAMPLES = 20  # left-out samples that the end of a stage names; all are in the summary file


class Trainer:
    """One stage, from its start or from its last checkpoint to its `hf/` folder."""

    def __init__(
        self,
        config: Config,
        stage: Stage,
        loaded: LoadedModel,
        geometry: Geometry,
        data: StageData,
        ranks: Ranks,
        stop: StopSignal,
    ):
        self.config, self.stage, self.data, self.ranks, self.stop = config, stage, data, ranks, stop
        self.loaded = loaded
        settings = stage.settings
        self._preparation = Preparation(geometry, settings.template, settings.tag_policy, settings.video)
        model = loaded.model
        if settings.lora:
            inject(model, settings.lora, config.run.seed)
        set_trainable(model, settings.learning_rate, settings.lora)
        self.parts = part_table(model, loaded.sources)
        groups = parameter_groups(model, settings.learning_rate, settings.optimizer.weight_decay)
        module = PackedForward(model, geometry, config.model.attention, ranks.device, config.model.compile)
        self._part_of = {f"hf_model.{n}": part_of(n) for n, p in model.named_parameters() if p.requires_grad}
        model.train()
        dims = read_dims(model.config)
        self.recomputed = choose_layers(dims, settings, ranks)
        set_layers(model, self.recomputed, config.model.compile, settings.zero.level)
        self.engine = Engine(module, groups, settings, ranks)
        self.guard = Guard(ranks, config.train.max_wait)
        self.watchdog = Watchdog(stage.folder, ranks.rank, config.train.max_wait)
        self.fit = Fit(stage.folder, stage.name, settings, dims, self.recomputed, ranks, config.train.fit)
        self.saver = Saver(stage.folder, self.engine, settings.checkpoint, ranks)
        self.num_steps = total_steps(data.steps_per_epoch, settings.epochs, settings.max_steps)
        self.state = TrainState()
        self._meta = {
            **resume_meta(config, stage, ranks.world_size),
            "data": data.num_samples_by_source,
            "num_refused": len(data.refused),
            "start": start_record(config, stage),
            "held_out": data.held_out.num_samples_by_source if data.held_out else {},
            RECORDS: data.records,
            HELD_OUT_RECORDS: data.held_out.records if data.held_out and config.evaluation.file else {},
        }
        self._saved_step = 0
        self._trained: set[str] = {row.part for row in self.parts if row.num_trainable}
        self._console = console(ranks.is_first)

    def run(self) -> None:
        """Raises Stopped, with the last step saved, where a signal asked for it."""
        with self.stop.deferred():
            self._resume()
            self._say_start()
            with self._metrics() as metrics, self.watchdog, self.fit:
                self._measure(is_due=self.state.step == 0)
                self._steps(metrics)
                self._stop_if_asked()
        exported = self._exported()
        self.engine.close()  # its memory is the next stage's
        self._export(exported)
        if self.ranks.is_first:
            summary = self._summary(exported)
            finish(self.stage, self._meta, summary)
            self._say_end(summary)
        self.ranks.barrier()

    def _resume(self) -> None:
        folder = self.stage.folder
        if self.ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            on_disk.remove_partial(folder)
        self.ranks.barrier()
        newest, passed_over = on_disk.last_whole(folder, self.ranks)
        for line in passed_over:
            self._console.print(f"damaged: {line}", highlight=False)
        if newest is not None:
            saved = on_disk.read_state(newest)["meta"]
            self._meta["start"] = saved["start"]  # as it was then: the start's folder may be gone
            refuse(self.stage, data_differences(self.config, self.stage, saved, self._meta))
            self.state = on_disk.load_checkpoint(newest, self.engine)
            self._saved_step = self.state.step
        below = self.stage.settings.lora or self.stage.settings.load_in != "none"  # weights that no checkpoint holds
        start = self.loaded.folder.resolve() if below and self.loaded.folder else None
        if newest is not None:
            self._refuse_another_start(start)
        self.saver.refuse_little_space(has_base=start is None)
        if self.ranks.is_first:
            on_disk.write_whole(folder / "config.yaml", dump(self.config))
        if newest is None:
            self.saver.write_base(self._write_support, start)
        self._refuse_what_no_export_takes()

    def _refuse_what_no_export_takes(self) -> None:
        """Raises RunError on every rank, before a step, where the end of the stage would."""
        error = ""
        if self.ranks.is_first:
            try:
                refuse_support(self.stage.folder / on_disk.BASE)
            except RunError as problem:
                error = str(problem)
        if error := self.ranks.first(error):
            raise RunError(error)

    def _refuse_another_start(self, start: Path | None) -> None:
        """Raises RunError where the tokenizer or the frozen weights are not those that the stage began on."""
        base, tokenizer = self.stage.folder / on_disk.BASE, self.loaded.tokenizer
        before: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        here = self.loaded.folder or self.loaded.sources["language_model"]
        if before.get_vocab() != tokenizer.get_vocab():
            refuse(self.stage, [f"tokenizer: {len(before):,} tokens of {base} -> {len(tokenizer):,} of {here}"])
        own = (base / "chat_template.jinja").read_bytes().decode()
        if self.stage.settings.template == "checkpoint" and own != tokenizer.chat_template:
            refuse(self.stage, [f"chat template: that of {base} -> that of {here}"])
        recorded = on_disk.start_of(base)
        if not (start and recorded) or start == recorded[0]:  # whose files were compared with their hashes already
            return
        if self.saver.hashes(start) != recorded[1]:
            refuse(self.stage, [f"weights of model.init: {recorded[0]} -> {start}"])

    def _write_support(self, folder: Path) -> None:
        dtype = DTYPES[self.stage.settings.precision]
        write_support(folder, self.loaded.model.config, self.loaded.tokenizer, self._preparation, dtype)

    def _steps(self, metrics: Metrics | None) -> None:
        settings = self.stage.settings
        began, stalled = time.monotonic(), 0.0
        self.watchdog.watch("step")
        num_left = 0 if self._is_over() else self.num_steps - self.state.step
        for step_batches in self.data.step_batches(self.state.step, num_left):
            assert step_batches.step == self.state.step, "data and trainer disagree on the position"
            counts = count(step_batches, self.guard, self.stop.requested)
            if counts.wants_stop:
                self._stop_if_asked(known=True)
            gathered = self.ranks.gather(step_batches.skipped) if counts.num_skipped else []
            skipped = [error for of_rank in gathered for error in of_rank]
            factor = learning_rate_factor(self.state.step, self.num_steps, settings.schedule)
            rates = self.engine.set_learning_rates(factor)
            torch.manual_seed(self._seed())
            expected = self._parts_to_judge(counts)
            wanted = self._part_of if expected else None
            try:
                result = train_step(self.engine, step_batches.batches, counts, self.ranks, wanted)
            except PackTooLarge as error:
                self.fit.lower(error.batch, self.state.step, lambda: self._save(background=False))
            if expected:
                self._judge_parts(result, expected, [s for b in step_batches.batches for s in b.sample_ids])
            seconds = time.monotonic() - began
            self.state.add(counts, result.loss, skipped, seconds)
            done = time.monotonic()
            self.watchdog.watch("pause")
            is_last = self.state.step == self.num_steps
            held_out = self._measure(is_last or _is_due(self.state.step, self.config.evaluation.every))
            if metrics:
                metrics.log(_line(self.state, result, counts, rates, seconds) | {"stalled_seconds": stalled} | held_out)
            self.saver.poll()
            self._save_if_due()
            self.watchdog.watch("step")
            began = time.monotonic()
            stalled = began - done  # by held-out samples, checkpoints and exports, told with the next step
            if self._is_over() and not is_last:
                told = f"ends after step {self.state.step} of {self.num_steps}: the held-out loss sinks no more"
                self._console.print(told, highlight=False)
                break

    def _seed(self) -> int:
        """Of this step and rank alone, so that no random state need be saved."""
        words = (self.config.run.seed, self.stage.name, self.state.step, self.ranks.rank)
        return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "little")

    def _measure(self, is_due: bool) -> dict[str, float]:
        """The held-out loss, for the log; kept in the state, so that a resumed stage judges it as an unbroken one."""
        if not (is_due and self.data.held_out):
            return {}
        loss = held_out_loss(self.engine, self.data.held_out, self.ranks)
        self.state.held_out.append((self.state.step, loss))
        best = lowest(self.state.held_out)
        told = f", lowest {best[1]:.4f} after step {best[0]}" if best and best[0] != self.state.step else ""
        self._console.print(f"held-out loss after step {self.state.step}: {loss:.4f}{told}", highlight=False)
        return {HELD_OUT_LOSS: loss}

    def _is_over(self) -> bool:
        """Whether the stage ends here: after its last step, or because the held-out loss sinks no more."""
        return self.state.step == self.num_steps or is_spent(self.state.held_out, self.config.evaluation.patience)

    def _save_if_due(self) -> None:
        policy, step = self.stage.settings.checkpoint, self.state.step
        is_last, exports = self._is_over(), _is_due(step, policy.export_every)
        best = lowest(self.state.held_out) if policy.best == HELD_OUT_LOSS else None
        if is_last or exports or _is_due(step, policy.every) or (best and best[0] == step):
            self._save(background=policy.background and not (is_last or exports))
        if exports and not is_last:
            self._export(on_disk.step_folder(self.stage.folder, step), f"-{step:08d}")

    def _save(self, background: bool) -> None:
        self._saved_step = self.state.step
        held_out = dict(self.state.held_out)
        metrics = {"loss": self.state.take_mean_loss()}
        if self.state.step in held_out:
            metrics[HELD_OUT_LOSS] = held_out[self.state.step]
        self.saver.save(self.state, self._meta, metrics, background)

    def _stop_if_asked(self, known: bool = False) -> None:
        """All ranks together: saves the step and raises Stopped. `known`: they have agreed on it already."""
        if not (known or self.ranks.sum(self.stop.requested)[0]):
            return
        self.watchdog.watch("pause")
        self.saver.finish()
        if self.state.step > self._saved_step:
            self._save(background=False)
        raise Stopped(f"stopped after step {self.state.step}, saved in {self.stage.folder}")

    def _exported(self) -> Path:
        """The checkpoint that the stage hands on: its last, or the best where its settings name the held-out loss."""
        folder, step = self.stage.folder, self.state.step
        if self.stage.settings.checkpoint.best == HELD_OUT_LOSS:
            best = on_disk.best_of(on_disk.whole_checkpoints(folder), HELD_OUT_LOSS)
            assert best, "a stage measures and saves its last step"
            if self.ranks.first(best) != on_disk.step_folder(folder, step):
                told = f"{best.name} has the lowest held-out loss and is exported, not the last, step-{step:08d}"
                self._console.print(told, highlight=False)
            return best
        return on_disk.step_folder(folder, step)

    def _export(self, step: Path, suffix: str = "") -> None:
        """From a checkpoint, on rank 0, while the others wait; an error there is raised on all."""
        error = ""
        if self.ranks.is_first:
            try:
                self._write_exports(step, suffix)
            except (RunError, OSError) as problem:
                error = str(problem)
        if error := self.ranks.first(error):
            raise RunError(error)

    def _write_exports(self, step: Path, suffix: str) -> None:
        """The whole model; of a stage with adapters these too, and before its end these alone."""
        settings, folder = self.stage.settings, self.stage.folder
        has_adapter = bool(settings.lora) and saved_modules(settings) is not None
        if has_adapter:
            out = folder / f"{ADAPTER}{suffix}"
            report = export_adapter(folder, step, out)
            self._console.print(f"{out}: {report['parameters']:,} parameters, for PEFT", highlight=False)
        if not (has_adapter and suffix):
            out = folder / f"{EXPORT}{suffix}"
            self._console.print(f"writing {out}", highlight=False)
            self._console.print(report_table(export_checkpoint(folder, step, out)))

    def _parts_to_judge(self, counts: StepCounts) -> set[str]:
        """Parts that have shown no gradient yet and must show one in this step.

        A step without images or videos excuses tower and projector, unless nothing but these train.
        """
        excused = (
            set() if counts.num_visuals or "language_model" not in self._trained else {"vision_tower", "projector"}
        )
        return self._trained - excused - set(self.state.moved_parts)

    def _judge_parts(self, result: StepResult, expected: set[str], samples: list[str]) -> None:
        told = ", ".join(f"{part} {result.part_norms[part]:.3g}" for part in sorted(expected))
        self._console.print(f"gradient norm after step {self.state.step + 1}: {told}", highlight=False)
        dead = sorted(part for part in expected if not result.part_norms[part] > 0)
        if dead:
            names = ", ".join(name for of_rank in self.ranks.gather(samples) for name in of_rank)
            raise RunError(f"{', '.join(dead)} should train but got no gradient from: {names}")
        self.state.moved_parts += sorted(expected)

    def _metrics(self) -> AbstractContextManager[Metrics | None]:
        if not self.ranks.is_first:
            return nullcontext()
        name = f"{self.config.run.name}/{self.stage.name}"
        return Metrics(self.stage.folder, name, self.stage.label, self.state.step, self.num_steps, self.config.log)

    def _say_start(self) -> None:
        settings, data = self.stage.settings, self.data
        zero = f"ZeRO {settings.zero.level}" + (", optimizer on CPU" if settings.zero.offload_optimizer else "")
        resumed = f", continued after step {self.state.step}" if self.state.step else ""
        self._console.rule(f"stage {self.stage.label}")
        self._console.print(
            f"{data.num_samples:,} samples, {self.num_steps:,} steps of {settings.step_size}, "
            f"{settings.precision}, {zero}, {self.ranks.world_size} rank(s){resumed}",
            highlight=False,
        )
        if lowered := read_lowered(self.stage.folder):
            pack = settings.pack
            told = f"packs of {pack.max_tokens:,} tokens and {pack.max_tiles:,} tiles at the most, lowered by train.fit"
            self._console.print(f"{told} after step {lowered[-1]['step'] - 1}", highlight=False)
        if data.refused:
            self._console.print(f"left out before training: {_counted(data.refused)}", highlight=False)
        for note in data.notes:
            self._console.print(note, highlight=False)
        if held_out := data.held_out:
            every, own = self.config.evaluation.every, self.config.evaluation.file
            told = f"held out of training: {held_out.num_samples:,} samples, measured every {every} steps"
            self._console.print(told, highlight=False)
            if own and held_out.refused:
                self._console.print(f"left out of them: {_counted(held_out.refused)}", highlight=False)
        self._console.print(parts_table(self.parts, self.stage.settings))

    def _summary(self, exported: Path) -> dict[str, Any]:
        refused = [error_record(error) for error in self.data.refused]
        lowered = read_lowered(self.stage.folder)
        return {
            **asdict(self.state),
            "refused": refused,
            "lowered": lowered,
            "exported": on_disk.read_state(exported)["state"],
        }

    def _say_end(self, summary: dict[str, Any]) -> None:
        rate = summary["num_tokens"] / max(summary["seconds"], 1e-9)
        self._console.print(
            f"stage {self.stage.label} done: loss {summary['loss']:.4f}, {summary['num_samples']:,} samples, "
            f"{summary['num_tokens']:,} tokens in {summary['seconds']:.0f} s ({rate:,.0f} tokens/s)",
            highlight=False,
        )
        if still := sorted(self._trained - set(self.state.moved_parts)):
            told = f"  {', '.join(still)} learned nothing: no sample had an image or a video"
            self._console.print(told, highlight=False)
        left_out = summary["refused"] + summary["skipped"]
        for entry in left_out[:LISTED_SAMPLES]:
            detail = f" ({entry['detail']})" if entry["detail"] else ""
            self._console.print(f"  left out: {entry['source']}, record {entry['record']}: {entry['reason']}{detail}")
        if len(left_out) > LISTED_SAMPLES:
            self._console.print(f"  and {len(left_out) - LISTED_SAMPLES} more: {self.stage.folder}/finished.json")


def total_steps(steps_per_epoch: int, epochs: float, max_steps: int) -> int:
    """Optimiser steps of a stage: `epochs` of the data, a last smaller step included, at most `max_steps` (0 = no cap).

    With epochs 0 it is `max_steps` alone, over as many epochs as that takes.
    """
    by_epochs = math.ceil(epochs * steps_per_epoch)
    return min(by_epochs, max_steps) if by_epochs and max_steps else by_epochs or max_steps


def parts_table(rows: list[PartRow], stage: StageConfig) -> Table:
    table = Table("part", "parameters", "trainable", "learning rate", "weights from")
    for row in rows:
        counts = f"{row.num_parameters:,}", f"{row.num_trainable:,}"
        table.add_row(row.part, *counts, how_trained(stage, row.part), row.source)
    return table


def _line(
    state: TrainState, result: StepResult, counts: StepCounts, rates: dict[str, float], seconds: float
) -> dict[str, float]:
    return {
        "step": state.step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        **{f"learning_rate/{name}": rate for name, rate in rates.items()},
        "num_samples": counts.num_samples,
        "num_tokens": counts.num_tokens,
        "num_supervised": counts.num_supervised,
        "seconds": seconds,
        "tokens_per_second": counts.num_tokens / max(seconds, 1e-9),
    }


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _counted(errors: Iterable[DataError]) -> str:
    return counted(f"of {error.source} ({error.reason})" for error in errors)
