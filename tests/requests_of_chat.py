"""Pictures as files, and requests for chat completions."""

import base64
import io
from typing import Any

from tiny_models import picture


def file_of(seed: int = 0, **sizes: int) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture(seed, **sizes).save(file, "PNG")
    return file.getvalue()


def chat_body(content: bytes | None = None, text: str = "", **fields: Any) -> dict[str, Any]:
    """The body of a request about a picture, by default `file_of(0)`, to the model "tiny"."""
    encoded = base64.b64encode(file_of() if content is None else content).decode()
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}]
    parts += [{"type": "text", "text": text}] if text else []
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}]} | fields
