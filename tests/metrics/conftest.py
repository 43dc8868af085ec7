"""What tests of the metrics need beside the repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def magic_dir() -> Path:
    """The folder with MAGIC's captions of MS COCO, and the references that they were scored against."""
    default = Path(__file__).parents[3] / "shared" / "metrics"
    directory = Path(os.environ.get("VLM_CAPTION_METRICS") or default)
    if not (directory / "magic_mscoco_results.json").is_file():
        pytest.skip(f"MAGIC's captions are not at {directory}: set VLM_CAPTION_METRICS to their folder")
    return directory
