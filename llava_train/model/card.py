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

PLAIN = """\
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="auto")
pixels = LlavaOnevisionImageProcessorPil.from_pretrained(folder)(Image.open({image!r}), return_tensors="pt")
content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
turns = [{{"role": "user", "content": content}}]
text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
[features] = model.get_image_features(**pixels).pooler_output  # one row per visual token
inputs = tokenizer(text.replace("<image>", "<image>" * len(features)), return_tensors="pt")
answer = model.generate(**inputs, **pixels, max_new_tokens=64)[0, inputs.input_ids.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""

PROCESSOR = """\
from PIL import Image
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

folder = {folder!r}
processor = AutoProcessor.from_pretrained(folder)
model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="auto")
content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
turns = [{{"role": "user", "content": content}}]
text = processor.apply_chat_template(turns, add_generation_prompt=True)
inputs = processor(images=Image.open({image!r}), text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=64)[0, inputs.input_ids.shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
"""

LOADING = """
## Loading

With transformers 5, torch and pillow:

```python
{plain}```

With torchvision, in transformers 4.57 as well; `pipeline("image-text-to-text", model=folder)` works there too:

```python
{processor}```
"""


def plain_lines(folder: str, image: str, question: str) -> str:
    """Python that asks the checkpoint about an image, without torchvision."""
    return PLAIN.format(folder=folder, image=image, question=question)


def processor_lines(folder: str, image: str, question: str) -> str:
    """Python that asks the checkpoint about an image through AutoProcessor, which needs torchvision."""
    return PROCESSOR.format(folder=folder, image=image, question=question)


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
        "" if is_intermediate else _loading(),
    ]
    return "\n".join(part for part in parts if part)


def _loading() -> str:
    example = {"folder": ".", "image": "a.png", "question": "What is shown?"}
    return LOADING.format(plain=plain_lines(**example), processor=processor_lines(**example))


def _table(title: str, head: str, rows: dict[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    return "\n".join([f"## {title}", "", f"| | {head} |", "| --- | --- |", *lines, ""])
