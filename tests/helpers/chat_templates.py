"""A chat template like the released checkpoints', and messages for it."""

from __future__ import annotations

from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG

# as the released LLaVA-OneVision checkpoints: media first, a space after the role, no newline between turns
RELEASED = """
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + ' ' -}}
  {%- for kind in ['image', 'video'] -%}
    {%- for part in message.content | selectattr('type', 'equalto', kind) -%}{{- '<' + kind + '>' -}}{%- endfor -%}
  {%- endfor -%}
  {%- for part in message.content | selectattr('type', 'equalto', 'text') -%}{{- '\\n' + part.text -}}{%- endfor -%}
  {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".strip()


def message(role: str, *content: str) -> dict:
    kinds = {IMAGE_TAG: {"type": "image"}, VIDEO_TAG: {"type": "video"}}
    return {"role": role, "content": [kinds.get(part, {"type": "text", "text": part}) for part in content]}
