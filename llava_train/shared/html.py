"""Text and pictures of data as HTML that stands alone: nothing in them can become markup or a reference."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

# control characters as their pictures, U+2400 on: HTML would drop or change them
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def escaped(text: str) -> str:
    """For element content and quoted attributes. Half a surrogate pair, which no file can hold, becomes `?`."""
    return escape(text.encode("utf-8", "replace").decode().translate(_CONTROLS))


def data_uri(image: Image.Image, form: str = "JPEG", quality: int = 82) -> str:
    """The picture itself as an address, by Pillow's writer of that name."""
    file = io.BytesIO()
    image.convert("RGB").save(file, form, quality=quality)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
