"""What all tests share: no network, no noise, and no silent skips where the needs of a test are promised."""

import logging
import os
from pathlib import Path

# Before anything imports huggingface_hub, which reads it once. No test talks to the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
from transformers.utils import logging as hf_logging

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()

# Markers whose tests must run, not skip: "index,flickr8k".
REQUIRED = {name.strip() for name in os.environ.get("VLM_CAPTION_REQUIRE", "").split(",") if name.strip()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    required = sorted(REQUIRED & {marker.name for marker in item.iter_markers()})
    if report.skipped and not hasattr(report, "wasxfail") and required:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"VLM_CAPTION_REQUIRE names {', '.join(required)}, and {item.nodeid} was skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def flickr8k_dir() -> Path:
    """The folder of Flickr8k, as its authors gave it out."""
    default = Path(__file__).parents[2] / "shared" / "flickr8k"
    directory = Path(os.environ.get("VLM_CAPTION_FLICKR8K") or default)
    if not (directory / "Flickr8k.token.txt").is_file():
        pytest.skip(f"Flickr8k is not at {directory}: set VLM_CAPTION_FLICKR8K to its folder")
    return directory


@pytest.fixture(autouse=True)
def logging_as_before():
    """A script that a test calls sets up logging and progress bars, and the next test is not to hear of it."""
    logger = logging.getLogger("vlm_caption")
    handlers, level, disabled = list(logger.handlers), logger.level, logging.root.manager.disable
    yield
    logger.handlers = handlers
    logger.setLevel(level)
    logging.disable(disabled)
    datasets.enable_progress_bars()


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """The test computes its own features."""
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(tmp_path):
    """Trains with the tiny settings, some changed: the training's by their own names; `output_dir` is a name."""
    from tiny_runs import tiny_settings, write_colours  # not for tests of data and metrics, which need no torch

    from vlm_caption.config.run_config import RunConfig
    from vlm_caption.training.train import train

    write_colours(tmp_path)

    def run(output_dir: str = "run", **changes):
        settings = tiny_settings(tmp_path) | {"training.output_dir": str(tmp_path / output_dir)}
        changed = {name if "." in name else f"training.{name}": value for name, value in changes.items()}
        return train(RunConfig.load(None, settings | changed))

    return run
