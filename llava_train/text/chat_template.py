"""The Jinja chat template by which an exported checkpoint renders what was trained."""

from __future__ import annotations

from llava_train.text.base import NamedTemplate, TagPolicy
from llava_train.text.named_templates import chat_name
from llava_train.text.qwen import QWEN_MESSAGES
from llava_train.text.vicuna import VICUNA_MESSAGES

_RENDER = r"""
{%- macro render(content) -%}
  {%- set ns = namespace(num_media=0, tag='', words='', text='', open=false) -%}
  {%- for part in content -%}
    {%- if part['type'] == 'text' -%}
      {%- set words = part['text'] -%}
      {%- if ns.open and words -%}
        {%- set ns.text = ns.text + ('' if words.startswith('\n') else '\n') -%}
        {%- set ns.open = false -%}
      {%- endif -%}
      {%- set ns.words = ns.words + words -%}
      {%- set ns.text = ns.text + words -%}
    {%- elif part['type'] in ['image', 'video'] -%}
      {%- set ns.num_media = ns.num_media + 1 -%}
      {%- set ns.tag = '<' + part['type'] + '>' -%}
      {%- set ns.text = ns.text + ('\n' if ns.open else '') + ns.tag -%}
      {%- set ns.open = true -%}
    {%- else -%}
      {{- raise_exception('content parts are text, image or video, not ' + part['type']) -}}
    {%- endif -%}
  {%- endfor -%}
  {%- if FRONT and ns.num_media == 1 -%}
    {%- set words = ns.words | trim -%}
    {{- ns.tag + ('\n' + words if words else '') -}}
  {%- else -%}
    {{- ns.text + ('\n' if ns.open else '') -}}
  {%- endif -%}
{%- endmacro -%}
""".lstrip()


def chat_template(name: NamedTemplate, tag_policy: TagPolicy) -> str:
    """Jinja source for an exported checkpoint: messages as its template has turns, answers marked as generated.

    `content` is a string, taken as written, or parts {type: image}, {type: video}, {type: text, text}. front: the only
    medium of a message comes first, a newline after it, the joined text stripped. Else media keep their place, each
    followed by a newline unless the text after it begins with one.
    """
    messages = VICUNA_MESSAGES if chat_name(name) == "vicuna" else QWEN_MESSAGES
    return (_RENDER + messages).replace("FRONT", "true" if tag_policy == "front" else "false")
