"""A tower as timm puts it on the Hub: timm's own kind of config and names of weights, and no preprocessor file."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import LANGUAGE, save_timm_tower

from vlm_caption import CaptionerForConditionalGeneration, CaptionerProcessor, compose

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return save_timm_tower(tmp_path_factory.mktemp("timm"), "vit_tiny_patch16_224")


def test_a_timm_folder_is_a_tower(hub_folder, tmp_path):
    model, processor = compose(hub_folder, LANGUAGE["gpt2"])
    assert model.config.vision_feature_size == 192
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    inputs = processor(images=picture, return_tensors="pt")
    timms_own = timm.data.create_transform(**timm.data.resolve_data_config(model.config.vision_config.pretrained_cfg))
    torch.testing.assert_close(inputs["pixel_values"][0], timms_own(picture), atol=0.02, rtol=0)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    same_inputs = CaptionerProcessor.from_pretrained(tmp_path)(images=picture, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**same_inputs).logits, model.eval()(**inputs).logits)
