"""The model card of a checkpoint: what it was trained from, on what, with which figures, and the lines that load it.

In: a `Card`, of which all may be absent. Out: Markdown whose front matter the hub accepts, and what the checkpoint's
notes keep of a card, so that a later stage can tell the whole recipe. What the hub accepts is in huggingface/hub-docs,
commit 242f4a1: modelcard.md, docs/hub/model-cards.md, docs/hub/repositories-licenses.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypedDict, cast

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from llava_train.family.base import Family
from llava_train.model.hf_folder.usage_lines import (
    adapter_lines,
    four_bit_lines,
    pipeline_lines,
    plain_lines,
    processor_lines,
)


class Table(NamedTuple):
    """A section of the card; one without rows is left out."""

    title: str
    head: list[str]
    rows: list[list[str]]


class DataSource(TypedDict, total=False):
    """What a mixture says of one source; "" where it says nothing."""

    sampling: str
    repository: str  # `owner/name[:subset]` on the hub, `unreleased`, or words
    licence: str


class Origin(TypedDict, total=False):
    """Where a part's weights came from before the first stage on record."""

    name: str  # hub name, or the last name of a folder
    base_models: list[str]  # hub names: itself, or what its own card names
    licence: dict[str, str]  # license, license_name, license_link of its own card; absent where nothing was inherited


class StageRecord(TypedDict, total=False):
    """One stage, as its own card and those of later stages tell it. JSON can hold it."""

    recipe: str
    stage: str
    data: dict[str, int]  # source -> number of samples
    sources: dict[str, DataSource]
    rates: dict[str, str]  # part -> learning rate, or frozen
    settings: dict[str, str]
    figures: dict[str, float]
    evaluation: dict[str, dict[str, float]]  # task -> accuracy, control, blind, questions
    versions: dict[str, str]


class Card(StageRecord, total=False):
    """The stage that wrote the checkpoint, and what came before it."""

    init: str  # where the stage's weights came from
    made: str  # how; absent where llava_train trained them
    origins: dict[str, Origin]  # by part
    history: list[StageRecord]  # earlier stages, first to last


LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
TASK = "image-text-to-text"
NOT_GIVEN = "not given"

TEMPLATE = Path(__file__).with_suffix(".md")
EXAMPLE = {"folder": ".", "image": "a.png", "question": "What is shown?"}


def render_card(card: Card, family: Family, is_intermediate: bool, is_adapter: bool = False) -> str:
    """Markdown with YAML front matter.

    is_intermediate: of a stage whose image mode transformers cannot express. is_adapter: of a folder that PEFT reads.
    """
    stages = _stages(card)
    start = without_paths(card.get("init", "unnamed weights"))
    environment = Environment(keep_trailing_newline=True, trim_blocks=True, undefined=StrictUndefined)  # Markdown
    environment.filters["cell"] = _cell
    tables = [
        _weights(card),
        _by_stage("Recipe", "setting", [(stage, stage.get("settings", {})) for stage in stages]),
        *(_data(stage) for stage in stages),
        _by_stage("Figures", "at the end", [(s, _shown_figures(s.get("figures", {}))) for s in stages]),
        *(_evaluation(stage) for stage in stages),
        _by_stage("Versions", "package", [(stage, stage.get("versions", {})) for stage in stages]),
    ]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=front_matter(card, family, is_adapter).to_yaml(),
        family=family.title,
        title=_title(card),
        made=card.get("made", "trained by llava_train"),
        start=start,
        tables=[table for table in tables if table.rows],
        licence=common_licence(card),
        is_intermediate=is_intermediate,
        is_adapter=is_adapter,
        adapter=adapter_lines(family, start, **EXAMPLE),
        plain=plain_lines(family, **EXAMPLE),
        processor=processor_lines(family, **EXAMPLE),
        pipeline=pipeline_lines(**EXAMPLE),
        four_bit=four_bit_lines(family, **EXAMPLE),
    )


def front_matter(card: Card, family: Family, is_adapter: bool = False) -> ModelCardData:
    """The hub's metadata; what is not known is left out. `license` stands where all that went in has the same one."""
    bases, licence = base_models(card), cast(dict[str, Any], common_licence(card))
    evaluation = card.get("evaluation", {})
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK,
        base_model=bases or None,
        base_model_relation=("adapter" if is_adapter else "finetune") if bases else None,
        datasets=hub_datasets(card) or None,
        tags=[family.model_type, "llava_train"],
        metrics=["accuracy"] if evaluation else None,
        model_name=_title(card) if evaluation else None,
        eval_results=[_result(task, scores) for task, scores in evaluation.items()] or None,
        **licence,
    )


def card_record(card: Card) -> dict[str, Any]:
    """What the notes of the checkpoint keep: origins of the parts and all stages, this one last."""
    return {"origins": card.get("origins", {}), "history": _stages(card)}


def base_models(card: Card) -> list[str]:
    return _once(name for origin in card.get("origins", {}).values() for name in origin.get("base_models", []))


def hub_datasets(card: Card) -> list[str]:
    """Hub names of the sources that gave samples, in all stages."""
    repositories = (source.get("repository", "") for _, _, source in _rows(card))
    return _once(name for name in (text.partition(":")[0] for text in repositories) if could_be_hub_name(name))


def common_licence(card: Card) -> dict[str, str]:
    """The licence that all origins and all sources name, as the hub writes it; empty where they differ or are silent.

    `other` only with the name and link that the hub asks for.
    """
    given = [origin["licence"] for origin in card.get("origins", {}).values() if "licence" in origin]
    given += [{"license": source.get("licence", "").lower()} for _, _, source in _rows(card)]
    if not given or any(licence != given[0] for licence in given):
        return {}
    licence = given[0]
    named = licence.get("license") != "other" or {"license_name", "license_link"} <= licence.keys()
    return dict(licence) if licence.get("license") in LICENCES.split() and named else {}


def could_be_hub_name(name: str) -> bool:
    """Whether the hub could have `owner/name`; a folder may look the same."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def without_paths(text: str) -> str:
    """`text` with each absolute path cut to its last name: a card tells nothing of the machine."""
    return re.sub(r"(?<![\w:/.~-])[~.]*/[^\s,]+", lambda found: last_names(found[0]), text)


def last_names(folder: str) -> str:
    """A folder by its name; an export, which is called hf in every stage, by the stage's name too."""
    path = PurePath(folder)
    return f"{path.parent.name}/{path.name}" if path.name.startswith("hf") and path.parent.name else path.name


def _stages(card: Card) -> list[StageRecord]:
    own: Any = {key: card[key] for key in StageRecord.__annotations__ if key in card}  # type: ignore[literal-required]
    return [*card.get("history", []), own]


def _rows(card: Card) -> Iterable[tuple[str, int, DataSource]]:
    """(name, samples, what the mixture says) of every source of every stage."""
    for stage in _stages(card):
        for name, count in stage.get("data", {}).items():
            yield name, count, stage.get("sources", {}).get(name, {})


def _title(stage: StageRecord) -> str:
    return f"{stage.get('recipe', 'llava_train')}, stage {stage.get('stage', 'unnamed')}"


def _result(task: str, scores: Mapping[str, float]) -> EvalResult:
    """A held-out file has no name on the hub: the task's own stands for it."""
    return EvalResult(
        task_type=TASK,
        dataset_type=task,
        dataset_name=task,
        metric_type="accuracy",
        metric_value=scores["accuracy"],
        metric_name="exact match",
    )


def _weights(card: Card) -> Table:
    rows = []
    for part, origin in card.get("origins", {}).items():
        trained = [
            f"{stage.get('stage', '')} ({rate})"
            for stage in _stages(card)
            if (rate := stage.get("rates", {}).get(part, "frozen")) != "frozen"
        ]
        rows.append([part, origin["name"], _licence_of(origin), ", ".join(trained) or "never"])
    return Table("Weights", ["part", "at first from", "licence of that", "trained in (learning rate)"], rows)


def _licence_of(origin: Origin) -> str:
    licence = origin.get("licence")
    return "" if licence is None else licence.get("license_name") or licence.get("license") or NOT_GIVEN


def _data(stage: StageRecord) -> Table:
    rows = []
    for name, count in stage.get("data", {}).items():
        source = stage.get("sources", {}).get(name, {})
        known = [source.get(key) for key in ("sampling", "repository", "licence")]
        rows.append([name, f"{count:,}", *(str(text or NOT_GIVEN) for text in known)])
    head = ["source", "samples", "sampling", "repository", "licence as given"]
    return Table(f"Data of stage {stage.get('stage', 'unnamed')}", head, rows)


def _evaluation(stage: StageRecord) -> Table:
    scores = stage.get("evaluation", {})
    rows = [
        [task, *(f"{of[key]:.3f}" for key in ("accuracy", "control", "blind")), f"{of['questions']:,.0f}"]
        for task, of in scores.items()
    ]
    head = ["held-out task", "accuracy", "with another sample's media", "best constant answer", "questions"]
    return Table(f"Evaluation after stage {stage.get('stage', 'unnamed')}", head, rows)


def _shown_figures(figures: Mapping[str, float]) -> dict[str, str]:
    known = {name: value for name, value in figures.items() if math.isfinite(value)}
    return {name: f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for name, v in known.items()}


def _by_stage(title: str, corner: str, columns: list[tuple[StageRecord, Mapping[str, str]]]) -> Table:
    """One column per stage, one row per name that any of them has."""
    names = _once(name for _, entries in columns for name in entries)
    rows = [[name, *(entries.get(name, "") for _, entries in columns)] for name in names]
    return Table(title, [corner, *(stage.get("stage", "unnamed") for stage, _ in columns)], rows)


def _cell(text: str) -> str:
    """`text` as Markdown shows it, on one line, with no end of a table's cell in it."""
    return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
