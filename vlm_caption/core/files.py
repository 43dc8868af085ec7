"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a UTF-8 file beside its name and moves it there, so that nobody ever sees a half of it.

    Args:
        path: the file; what was there is replaced.
        text: its content.
        errors: what to do with characters that are no text, as of `str.encode`.

    Raises:
        OSError: if it cannot be written; then nothing is left behind, and the old file stays.
    """
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as `write_text` does.

    Raises:
        OSError: if it cannot be written; then nothing is left behind, and the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
