"""The templates by name, as `stages.STAGE.template` gives it."""

from __future__ import annotations

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
