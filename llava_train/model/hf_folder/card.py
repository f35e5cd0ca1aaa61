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
from pathlib import PurePath
from typing import Any, TypedDict

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from llava_train.model.hf_folder.usage_lines import (
    adapter_lines,
    four_bit_lines,
    pipeline_lines,
    plain_lines,
    processor_lines,
)


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

INTERMEDIATE = """
> This checkpoint is an intermediate of its recipe: it holds keys and weights for the next stage to start from. It was
> trained on single squashed images without the newline that transformers adds, so do not expect answers from it.
"""

LOADING_ADAPTER = """## Loading

`.` is this folder, and `{base}` the checkpoint that it was trained on. With transformers 5, peft, torch and pillow:

```python
{lines}```
"""

LOADING = """## Loading

`.` is this folder; its name on the hub does as well. With transformers 5, torch and pillow:

```python
{plain}```

With torchvision, in transformers 4.57 as well:

```python
{processor}```

The same in one call:

```python
{pipeline}```

In 4 bits, with transformers 5, accelerate and bitsandbytes; vision tower and projector stay as they are:

```python
{four_bit}```
"""


def render_card(card: Card, is_intermediate: bool, is_adapter: bool = False) -> str:
    """Markdown with YAML front matter.

    is_intermediate: of a stage whose image mode transformers cannot express. is_adapter: of a folder that PEFT reads.
    """
    stages = _stages(card)
    start = without_paths(card.get("init", "unnamed weights"))
    made = card.get("made", "trained by llava_train")
    metadata = yaml.safe_dump(front_matter(card, is_adapter), sort_keys=False, allow_unicode=True)
    loading = _loading_adapter(start) if is_adapter else _loading()
    what = "An adapter for LLaVA-OneVision" if is_adapter else "LLaVA-OneVision"
    parts = [
        f"---\n{metadata}---\n",
        f"# {_cell(_title(card))}\n",
        f"{what} {made} from {_cell(start)}. It reads text, images and videos.\n",
        INTERMEDIATE if is_intermediate else "",
        _weights(card),
        _by_stage("Recipe", "setting", [(stage, stage.get("settings", {})) for stage in stages]),
        *(_data(stage) for stage in stages),
        _by_stage("Figures", "at the end", [(s, _shown_figures(s.get("figures", {}))) for s in stages]),
        *(_evaluation(stage) for stage in stages),
        _by_stage("Versions", "package", [(stage, stage.get("versions", {})) for stage in stages]),
        _licence_section(card),
        "" if is_intermediate else loading,
    ]
    return "\n".join(part for part in parts if part)


def front_matter(card: Card, is_adapter: bool = False) -> dict[str, Any]:
    """The hub's metadata; what is not known is left out. `license` stands where all that went in has the same one."""
    bases = base_models(card)
    library = "peft" if is_adapter else "transformers"
    metadata: dict[str, Any] = {"library_name": library, "pipeline_tag": TASK, **common_licence(card)}
    if bases:
        metadata |= {"base_model": bases, "base_model_relation": "adapter" if is_adapter else "finetune"}
    if data := hub_datasets(card):
        metadata["datasets"] = data
    metadata["tags"] = ["llava_onevision", "llava_train"]
    if card.get("evaluation"):
        results = [_result(task, scores) for task, scores in card["evaluation"].items()]
        metadata["metrics"] = ["accuracy"]
        metadata["model-index"] = [{"name": _title(card), "results": results}]
    return metadata


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


def _result(task: str, scores: Mapping[str, float]) -> dict[str, Any]:
    """A held-out file has no name on the hub: the task's own stands for it."""
    return {
        "task": {"type": TASK},
        "dataset": {"type": task, "name": task},
        "metrics": [{"type": "accuracy", "value": scores["accuracy"], "name": "exact match"}],
    }


def _weights(card: Card) -> str:
    if not card.get("origins"):
        return ""
    rows = []
    for part, origin in card["origins"].items():
        trained = [
            f"{stage.get('stage', '')} ({rate})"
            for stage in _stages(card)
            if (rate := stage.get("rates", {}).get(part, "frozen")) != "frozen"
        ]
        rows.append([part, origin["name"], _licence_of(origin), ", ".join(trained) or "never"])
    return _table("Weights", ["part", "at first from", "licence of that", "trained in (learning rate)"], rows)


def _licence_of(origin: Origin) -> str:
    licence = origin.get("licence")
    return "" if licence is None else licence.get("license_name") or licence.get("license") or NOT_GIVEN


def _data(stage: StageRecord) -> str:
    rows = []
    for name, count in stage.get("data", {}).items():
        source = stage.get("sources", {}).get(name, {})
        known = [source.get(key) for key in ("sampling", "repository", "licence")]
        rows.append([name, f"{count:,}", *(str(text or NOT_GIVEN) for text in known)])
    head = ["source", "samples", "sampling", "repository", "licence as given"]
    return _table(f"Data of stage {stage.get('stage', 'unnamed')}", head, rows)


def _evaluation(stage: StageRecord) -> str:
    scores = stage.get("evaluation", {})
    rows = [
        [task, *(f"{of[key]:.3f}" for key in ("accuracy", "control", "blind")), f"{of['questions']:,.0f}"]
        for task, of in scores.items()
    ]
    head = ["held-out task", "accuracy", "with another sample's media", "best constant answer", "questions"]
    return _table(f"Evaluation after stage {stage.get('stage', 'unnamed')}", head, rows)


def _shown_figures(figures: Mapping[str, float]) -> dict[str, str]:
    known = {name: value for name, value in figures.items() if math.isfinite(value)}
    return {name: f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for name, v in known.items()}


def _by_stage(title: str, corner: str, columns: list[tuple[StageRecord, Mapping[str, str]]]) -> str:
    """One column per stage, one row per name that any of them has."""
    names = _once(name for _, entries in columns for name in entries)
    rows = [[name, *(entries.get(name, "") for _, entries in columns)] for name in names]
    return _table(title, [corner, *(stage.get("stage", "unnamed") for stage, _ in columns)], rows)


def _licence_section(card: Card) -> str:
    licence = common_licence(card)
    if licence:
        told = f"{licence.get('license_name', licence['license'])}: all weights and data that went in are given so."
    else:
        told = (
            "Not set: what went in does not all name one and the same licence (tables above). Whoever publishes this"
            " checkpoint looks at each and sets `license` at the top of this file."
        )
    return f"## Licence\n\n{_cell(told)}\n"


def _loading() -> str:
    example = {"folder": ".", "image": "a.png", "question": "What is shown?"}
    lines = {
        "plain": plain_lines,
        "processor": processor_lines,
        "pipeline": pipeline_lines,
        "four_bit": four_bit_lines,
    }
    return LOADING.format(**{name: make(**example) for name, make in lines.items()})


def _loading_adapter(base: str) -> str:
    lines = adapter_lines(base, folder=".", image="a.png", question="What is shown?")
    return LOADING_ADAPTER.format(base=_cell(base), lines=lines)


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    shown = [f"| {' | '.join(_cell(text) for text in line)} |" for line in lines]
    return "\n".join([f"## {_cell(title)}", "", *shown, ""])


def _cell(text: str) -> str:
    """`text` as Markdown shows it, on one line, with no end of a table's cell in it."""
    return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|")


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
