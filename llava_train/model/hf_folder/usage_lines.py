"""The lines of Python that ask a checkpoint about an image, as cards and the end of a run show them."""

from __future__ import annotations

from llava_train.family.base import Family

# module names in both majors of transformers; what is named here replaces its own list, so lm_head stands here too
NOT_QUANTISED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")

_ASK = """\
pixels = {image_processor}.from_pretrained(folder)(Image.open({image!r}), return_tensors="pt")
content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
turns = [{{"role": "user", "content": content}}]
text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
[features] = model.get_image_features(**pixels).pooler_output  # one row per visual token
inputs = tokenizer(text.replace("<image>", "<image>" * len(features)), return_tensors="pt")
answer = model.generate(**inputs, **pixels, max_new_tokens=64)[0, inputs.input_ids.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""

PLAIN = (
    """\
from PIL import Image
from transformers import AutoTokenizer, {model_class}, {image_processor}

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model_class}.from_pretrained(folder, dtype="auto")
"""
    + _ASK
)

PROCESSOR = """\
from PIL import Image
from transformers import AutoProcessor, {model_class}

folder = {folder!r}
processor = AutoProcessor.from_pretrained(folder)
model = {model_class}.from_pretrained(folder, dtype="auto")
content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
turns = [{{"role": "user", "content": content}}]
text = processor.apply_chat_template(turns, add_generation_prompt=True)
inputs = processor(images=Image.open({image!r}), text=text, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=64)[0, inputs.input_ids.shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
"""

ADAPTER = (
    """\
import json

from peft import PeftModel
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig
from transformers import {model_class}, {image_processor}

base, folder = {base!r}, {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model_class}.from_pretrained(base, dtype="auto")
# grid, tiles and end tokens as in training; the base may have others
{settings}model.generation_config = GenerationConfig.from_pretrained(folder)
model = PeftModel.from_pretrained(model, folder)
"""
    + _ASK
)

PIPELINE = """\
from PIL import Image
from transformers import pipeline

ask = pipeline("image-text-to-text", model={folder!r}, dtype="auto")
content = [{{"type": "image", "image": Image.open({image!r})}}, {{"type": "text", "text": {question!r}}}]
turns = ask(text=[{{"role": "user", "content": content}}], max_new_tokens=64)
print(turns[0]["generated_text"][-1]["content"])
"""

FOUR_BIT = """\
import torch
from PIL import Image
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers import {model_class}, {image_processor}

folder = {folder!r}
four_bit = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    llm_int8_skip_modules={skipped!r},
)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {model_class}.from_pretrained(
    folder, quantization_config=four_bit, dtype=torch.bfloat16, device_map="auto"
)
pixels = {image_processor}.from_pretrained(folder)(Image.open({image!r}), return_tensors="pt")
pixels = pixels.to(model.device, torch.bfloat16)
content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
turns = [{{"role": "user", "content": content}}]
text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
[features] = model.get_image_features(**pixels).pooler_output  # one row per visual token
inputs = tokenizer(text.replace("<image>", "<image>" * len(features)), return_tensors="pt").to(model.device)
answer = model.generate(**inputs, **pixels, max_new_tokens=64)[0, inputs.input_ids.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""


def plain_lines(family: Family, folder: str, image: str, question: str) -> str:
    """Without torchvision; transformers 5."""
    return PLAIN.format(**_classes(family), folder=folder, image=image, question=question)


def processor_lines(family: Family, folder: str, image: str, question: str) -> str:
    """Through AutoProcessor, which needs torchvision; transformers 4.57 and 5."""
    return PROCESSOR.format(**_classes(family), folder=folder, image=image, question=question)


def adapter_lines(family: Family, base: str, folder: str, image: str, question: str) -> str:
    """The adapter `folder` on the checkpoint `base`, without torchvision."""
    names = {**_classes(family), "settings": family.settings_lines}
    return ADAPTER.format(**names, base=base, folder=folder, image=image, question=question)


def pipeline_lines(folder: str, image: str, question: str) -> str:
    """In one call, with torchvision; transformers 4.57 and 5."""
    return PIPELINE.format(folder=folder, image=image, question=question)


def four_bit_lines(family: Family, folder: str, image: str, question: str) -> str:
    """The language model in 4 bits, by bitsandbytes; transformers 5."""
    skipped = list(NOT_QUANTISED)
    return FOUR_BIT.format(**_classes(family), folder=folder, image=image, question=question, skipped=skipped)


def _classes(family: Family) -> dict[str, str]:
    return {"model_class": family.model_class, "image_processor": family.image_processor}
