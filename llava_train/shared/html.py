"""Pages that stand alone in one file: templates in which text of data can become neither markup nor a reference."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

# control characters as their pictures, U+2400 on: HTML would drop or change them
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def page_template(path: Path) -> Template:
    """The template in that file: what it is filled with is escaped, unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)


def _shown(value: Any) -> Any:
    """Half a surrogate pair, which no file can hold, becomes `?`."""
    return value if isinstance(value, Markup) else str(value).encode("utf-8", "replace").decode().translate(_CONTROLS)


def data_uri(image: Image.Image, form: str = "JPEG", quality: int = 82) -> str:
    """The picture itself as an address, by Pillow's writer of that name."""
    file = io.BytesIO()
    image.convert("RGB").save(file, form, quality=quality)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
