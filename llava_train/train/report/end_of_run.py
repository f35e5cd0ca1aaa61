"""The end of a run for people: a table of accuracies, pictures of held-out questions, the loss curve, how to load."""

from __future__ import annotations

import os
import random
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from rich.table import Table

from llava_train.config.schema import Config
from llava_train.data.media.image import open_image
from llava_train.data.media.sample_media import make_video_reader
from llava_train.evaluate.prediction import Prediction, TaskResult
from llava_train.family.registry import family_of
from llava_train.model.hf_folder.usage_lines import plain_lines, processor_lines
from llava_train.ranks.process_group import Ranks
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG
from llava_train.shared.console import console
from llava_train.shared.json_files import read_json
from llava_train.train.export.card import refresh_card
from llava_train.train.report.metrics import read_metrics
from llava_train.train.run.stages import Stage, all_stages

SHOWN_PER_TASK = 4
THUMBNAIL = 64  # pixels a side of one image or frame
ITEM_WIDTH = 4.0  # inches


def report(config: Config, results: dict[str, dict[str, TaskResult]], ranks: Ranks) -> None:
    """Prints the table, writes `report/samples.png` and `report/loss.png` in the run's folder, on rank 0.

    The cards of the stages get their accuracies.
    """
    if not ranks.is_first:
        return
    out = console()
    stages = all_stages(config)
    folder = Path(config.run.dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    draw_losses(stages, folder / "loss.png")
    if results:
        for stage in stages:
            if stage.export.is_dir():
                refresh_card(config, stage)
        out.print(accuracy_table(results))
        draw_samples(config, results[stages[-1].name], folder / "samples.png")
        out.print(f"held-out questions and answers  {folder / 'samples.png'}", highlight=False)
    out.print(f"loss curve                      {folder / 'loss.png'}", highlight=False)
    if stages[-1].export.is_dir():
        out.print(f"checkpoint                      {stages[-1].export}", highlight=False)
        print(loading_lines(stages[-1].export, results))


def accuracy_table(results: dict[str, dict[str, TaskResult]]) -> Table:
    """Stage by stage and task by task; the blind baseline and the control of each task stand beside its accuracy."""
    tasks = list(next(iter(results.values())))
    table = Table("stage", title="held-out accuracy | control: another sample's media")
    for task in tasks:
        table.add_column(task, justify="right")
    for stage, by_task in results.items():
        table.add_row(stage, *(f"{by_task[t].accuracy:.3f} | {by_task[t].control:.3f}" for t in tasks))
    last = list(results.values())[-1]
    table.add_section()
    table.add_row("blind: best constant answer per question", *(f"{last[t].blind:.3f}" for t in tasks))
    table.add_row("questions", *(f"{len(last[t].predictions):,}" for t in tasks))
    return table


def draw_losses(stages: list[Stage], path: Path) -> None:
    """Training loss against optimiser steps, one panel per stage: raw, as a running mean, and of what is held out."""
    figure, axes = _figure(1, len(stages), width=4 * len(stages), height=3)
    for axis, stage in zip(axes[0], stages, strict=True):
        lines = read_metrics(stage.folder)
        steps, losses = [line["step"] for line in lines], np.array([line["loss"] for line in lines])
        axis.plot(steps, losses, linewidth=0.5, alpha=0.4, color="tab:blue")
        axis.plot(steps, _running_mean(losses), color="tab:blue", label="training")
        if held_out := stage.summary().get("held_out"):
            axis.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", markersize=3, label="held out")
            axis.legend()
        axis.set(title=stage.name, xlabel="optimiser step", ylabel="loss per supervised token", ylim=(0, None))
    figure.savefig(path, dpi=120)


def _running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    width = max(1, round(len(values) * share))
    sums = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(0, np.arange(len(values)) - width + 1)
    return (sums[1:] - sums[starts]) / (np.arange(1, len(values) + 1) - starts)


def draw_samples(config: Config, results: dict[str, TaskResult], path: Path) -> None:
    """Held-out items drawn by the run's seed, never by hand: media, question, truth, and the model's answer."""
    shown = {
        task: [(p, _strip(config, p)) for p in _drawn(config.run.seed, result.predictions)]
        for task, result in results.items()
    }
    heights = [
        0.7 + min(1.6, max(ITEM_WIDTH * strip.shape[0] / strip.shape[1] for _, strip in row)) for row in shown.values()
    ]
    figure, axes = _figure(len(shown), SHOWN_PER_TASK, ITEM_WIDTH * SHOWN_PER_TASK, sum(heights), height_ratios=heights)
    for row, (task, items) in zip(axes, shown.items(), strict=True):
        for axis in row:
            axis.axis("off")
        for axis, (prediction, strip) in zip(row, items, strict=False):
            axis.imshow(strip)
            axis.set_title(_words(prediction.question), fontsize=8, wrap=True)
            colour = "tab:green" if prediction.is_right else "tab:red"
            told = f"truth: {prediction.answer}\nmodel: {prediction.predicted}"
            axis.text(0.5, -0.05, told, transform=axis.transAxes, ha="center", va="top", fontsize=9, color=colour)
        told = f"{task}\n{results[task].accuracy:.0%} of {len(results[task].predictions)}"
        row[0].text(-0.02, 0.5, told, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=120)


def _drawn(seed: int, predictions: list[Prediction]) -> list[Prediction]:
    return random.Random(seed).sample(predictions, min(SHOWN_PER_TASK, len(predictions)))


def _strip(config: Config, prediction: Prediction) -> np.ndarray:
    """The media of an item side by side, uint8 [height, width, 3]."""
    pictures = [_thumbnail(Path(path), config.data.max_pixels) for path in prediction.images]
    reader = make_video_reader(config.data, list(config.stages.values())[-1].video)
    for path in filter(os.path.exists, prediction.videos):
        pictures += list(reader.frames(Path(path), THUMBNAIL).transpose(0, 2, 3, 1))
    reader.close()
    gap = np.full((THUMBNAIL, 2, 3), 255, dtype=np.uint8)
    return np.concatenate([piece for picture in pictures or [gap] for piece in (picture, gap)][:-1], axis=1)


def _thumbnail(path: Path, max_pixels: int) -> np.ndarray:
    """uint8 [THUMBNAIL, THUMBNAIL, 3]; grey where the image lay within another file."""
    if not path.is_file():
        return np.full((THUMBNAIL, THUMBNAIL, 3), 127, dtype=np.uint8)
    return np.asarray(open_image(path, max_pixels).resize((THUMBNAIL, THUMBNAIL)))


def _figure(
    rows: int, columns: int, width: float, height: float, height_ratios: list[float] | None = None
) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)


def loading_lines(folder: Path, results: dict[str, dict[str, TaskResult]]) -> str:
    """Python that asks the checkpoint: without torchvision, then with it. About a held-out image where there is one."""
    tasks = list(results.values())[-1].values() if results else []
    single = (p for task in tasks for p in task.predictions if len(p.images) == 1 and not p.videos)
    shown = next(single, None)
    image, question = (shown.images[0], _words(shown.question)) if shown else ("a.png", "What is shown?")
    family = family_of(read_json(folder / "config.json"))
    example = {"folder": str(folder), "image": image, "question": question}
    plain, processor = (indent(lines(family, **example), "    ") for lines in (plain_lines, processor_lines))
    return f"\nask it, in this environment:\n\n{plain}\nor where torchvision is installed:\n\n{processor}"


def _words(question: str) -> str:
    """A question without its tags, on one line."""
    return " ".join(question.replace(IMAGE_TAG, "").replace(VIDEO_TAG, "").split())
