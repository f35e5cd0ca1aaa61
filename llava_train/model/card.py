"""The model card of a checkpoint: what it was trained from, on what, with which figures, and the lines that load it."""

from __future__ import annotations

from typing import TypedDict

import yaml


class Card(TypedDict):
    """recipe, stage: names. init: where the stage's weights came from. data: source -> number of samples.

    settings: what a reader should know of the recipe (learning rates, batch, steps). figures: measured at the end.
    """

    recipe: str
    stage: str
    init: str
    data: dict[str, int]
    settings: dict[str, str]
    figures: dict[str, float]


INTERMEDIATE = """
> This checkpoint is an intermediate of its recipe: it holds keys and weights for the next stage to start from. It was
> trained on single squashed images without the newline that transformers adds, so do not expect answers from it.
"""

LOADING = """
## Loading

In any environment with transformers and torch:

```python
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="auto")
pixels = LlavaOnevisionImageProcessorPil.from_pretrained(folder)(images=Image.open("a.png"), return_tensors="pt")
```

With torchvision, also:

```python
from transformers import AutoProcessor, pipeline

processor = AutoProcessor.from_pretrained(folder)
ask = pipeline("image-text-to-text", model=folder)
```
"""


def render_card(card: Card, is_intermediate: bool) -> str:
    """Markdown with YAML front matter. `is_intermediate`: of a stage whose image mode transformers cannot express."""
    front_matter = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llava_onevision", "llava_train"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n",
        f"# {card['recipe']}, stage {card['stage']}\n",
        f"LLaVA-OneVision trained by llava_train from {card['init']}.\n",
        INTERMEDIATE if is_intermediate else "",
        _table("Recipe", "setting", card["settings"]),
        _table("Data", "samples", {source: f"{count:,}" for source, count in card["data"].items()}),
        _table("Figures", "value", {name: f"{value:.4g}" for name, value in card["figures"].items()}),
        "" if is_intermediate else LOADING,
    ]
    return "\n".join(part for part in parts if part)


def _table(title: str, head: str, rows: dict[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    return "\n".join([f"## {title}", "", f"| | {head} |", "| --- | --- |", *lines, ""])
