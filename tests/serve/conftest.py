"""A tiny captioner, alone and behind a queue."""

import pytest
from tiny_models import tiny_model, tiny_processor

from vlm_caption import Captioner


@pytest.fixture(scope="session")
def tiny_captioner() -> Captioner:
    model = tiny_model(language="llama", image_tokens="patches", image_grid=2)
    model.generation_config.update(max_new_tokens=8, do_sample=False, num_beams=2)
    return Captioner(model, tiny_processor(model.config))
