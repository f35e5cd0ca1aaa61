"""`preview`: the samples of a run as the model sees them, without loading weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from llava_train.config.load import load
from llava_train.config.mixture import SourceConfig
from llava_train.config.rules.files import source_problem
from llava_train.config.schema import Config
from llava_train.costs.dims import ModelDims
from llava_train.data.loading.stage_data import make_encoder
from llava_train.data.media.sample_media import make_media_reader
from llava_train.data.preview.measure import survey
from llava_train.data.preview.page import PreviewPage
from llava_train.data.preview.samples import Preview, Shown, Summary, sample_record, sample_text
from llava_train.data.samples.sampled_records import present_sources, unread_of_sources
from llava_train.family.base import Geometry
from llava_train.model.start.read_model import model_dims, model_family, read_model
from llava_train.shared.errors import ConfigError, Fault
from llava_train.shared.whole_files import whole_file


def run(argv: list[str]) -> int:
    """Prints the samples or writes them to preview.out, then a summary line. Raises ConfigError, DataError."""
    config = load(argv)
    sources = _sources(config)
    geometries, dims, tokenizer = _read_model(config)
    summary = Summary()
    previews = _previews(config, sources, geometries, tokenizer, summary)
    if config.preview.format == "html":
        _write_page(config, previews, PreviewPage(tokenizer, dims, config.run.seed))
    else:
        _show(config, previews, tokenizer)
    to_pipe = config.preview.format == "jsonl" and not config.preview.out
    for line in [*unread_of_sources(sources.values()), summary]:
        print(line, file=sys.stderr if to_pipe else sys.stdout)
    return 0


def _show(config: Config, previews: Iterator[Preview], tokenizer: PreTrainedTokenizerBase) -> None:
    with _output(config.preview.out) as output:
        show = _printer(config, output, tokenizer)
        for preview in previews:
            for shown in preview.first(config.preview.count):
                show(shown)


def _write_page(config: Config, previews: Iterator[Preview], page: PreviewPage) -> None:
    path = config.preview.out or str(Path(config.run.dir, "preview.html"))
    for preview in previews:
        page.add_stage(preview.name, preview.stage, survey(preview, config.preview.count, page.add))
    with _output(path) as output:
        output.write(page.html(f"{config.run.name}: preview"))
    print(f"{path} ({os.path.getsize(path) / 1e6:.1f} MB): open it in a browser")


def _sources(config: Config) -> dict[str, dict[str, SourceConfig]]:
    """Sources of each stage that is shown. Raises ConfigError with all that are not on disk."""
    wanted = [config.preview.stage] if config.preview.stage else list(config.stages)
    sources = {name: present_sources(config.data, config.stages[name]) for name in wanted}
    faults = []
    for stage_name, of_stage in sources.items():
        key = "data.file" if config.data.file else f"stages.{stage_name}.mixture"
        for name, source in of_stage.items():
            problem, remedy = source_problem(source, own=bool(config.data.file))
            if problem:
                faults.append(Fault(key, f"source {name}: {problem}", remedy))
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return sources


def _read_model(config: Config) -> tuple[dict[str, Geometry], ModelDims, PreTrainedTokenizerBase]:
    """The geometry of each stage, and what is the same in all."""
    from llava_train.model.hf_folder.preparation import stage_geometries
    from llava_train.model.loading.load_model import resolve_init

    with TemporaryDirectory() as folder:
        model = resolve_init(config.model, Path(folder))
        settings, tokenizer = read_model(model)
        family = model_family(model)
        geometries = stage_geometries(config.stages, model.init, family, settings.tile_size, settings.patch_size)
        return geometries, model_dims(model), tokenizer


def _previews(
    config: Config,
    sources: dict[str, dict[str, SourceConfig]],
    geometries: dict[str, Geometry],
    tokenizer: PreTrainedTokenizerBase,
    summary: Summary,
) -> Iterator[Preview]:
    for name, of_stage in sources.items():
        stage = config.stages[name]
        media = make_media_reader(config.data, stage.video, geometries[name])
        encoder = make_encoder(tokenizer, stage, name, config.data.too_long)
        yield Preview(name, stage, of_stage, encoder, media, config.data, config.run.seed, summary)


def _printer(config: Config, output: IO[Any], tokenizer: PreTrainedTokenizerBase):
    if config.preview.format == "jsonl":
        return lambda shown: output.write(json.dumps(sample_record(shown), ensure_ascii=False) + "\n")
    console = Console(file=output, soft_wrap=True)
    stages: list[str] = []

    def show(shown: Shown) -> None:
        if shown.stage not in stages:
            stages.append(shown.stage)
            console.print(f"stage {shown.stage}", style="bold underline")
        console.print(sample_text(shown, tokenizer, in_colour=bool(console.color_system)))

    return show


@contextmanager
def _output(path: str) -> Iterator[IO[Any]]:
    """Standard output, or a file that is there whole or not at all."""
    if not path:
        yield sys.stdout
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(Path(path)) as file:
        yield file
