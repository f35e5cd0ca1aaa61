"""The templates by name, as `stages.STAGE.template` gives it."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from llava_train.shared.errors import Fault
from llava_train.text.base import LabelRule, NamedTemplate, TagPolicy, Template, TemplateName
from llava_train.text.plain import PlainTemplate
from llava_train.text.qwen import QwenTemplate
from llava_train.text.vicuna import VicunaTemplate


def make_template(name: NamedTemplate, label_rule: LabelRule, tag_policy: TagPolicy) -> Template:
    """The template of a stage. `label_rule` matters to qwen alone."""
    if name == "qwen":
        return QwenTemplate(label_rule, tag_policy)
    return VicunaTemplate(tag_policy) if name == "vicuna" else PlainTemplate(tag_policy)


def chat_name(name: TemplateName) -> TemplateName:
    """The template in which a checkpoint of such a stage is asked: plain knows no questions, so ChatML."""
    return "qwen" if name == "plain" else name


def template_fault(stage_name: str, template: TemplateName, tokens: Collection[str]) -> Fault | None:
    """Refuses a template with a special token that is not a token of its own: not among the tokenizer's added ones."""
    missing = _missing(template, tokens)
    if not missing:
        return None
    fitting = [name for name in get_args(NamedTemplate) if not _missing(name, tokens)]
    key = f"stages.{stage_name}.template"
    remedy = f"set {key}={' or '.join(fitting)}, or choose a language model whose tokenizer has them"
    return Fault(key, f"{template} needs {' and '.join(missing)}, which the model's tokenizer lacks", remedy)


def _missing(template: TemplateName, tokens: Collection[str]) -> list[str]:
    if template == "checkpoint":
        return []
    return [token for token in make_template(template, "clean", "front").special_tokens if token not in tokens]
