"""What transformers' own tests expect of the pytest that runs them."""

import pytest
from transformers.utils import logging as hf_logging

# Those of transformers' root conftest that its mixins use; pytest refuses unknown ones (--strict-markers).
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "is_pipeline_test",
    "order",
    "slow",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: of transformers' own tests")


@pytest.fixture(autouse=True)
def _warnings_are_logged():
    """Some of the tests wait for a warning of transformers, and ours turn those off."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_warning()
    yield
    hf_logging.set_verbosity(before)
