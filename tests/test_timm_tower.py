"""A tower as timm puts it on the Hub: a config of timm's own kind, weights under timm's names, no preprocessor file."""

import numpy as np
import pytest
import torch
from PIL import Image
from towers import LANGUAGE

from vlm_caption import CaptionerForConditionalGeneration, CaptionerProcessor, compose

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3)
    timm.models.save_for_hf(
        model, folder, model_args={"depth": 2, "embed_dim": 48, "num_heads": 3}, safe_serialization=True
    )
    return folder


def test_a_timm_folder_is_a_tower(hub_folder, tmp_path):
    model, processor = compose(str(hub_folder), LANGUAGE["gpt2"])
    assert model.config.vision_feature_size == 48
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    inputs = processor(images=picture, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    same_inputs = CaptionerProcessor.from_pretrained(tmp_path)(images=picture, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**same_inputs).logits, model.eval()(**inputs).logits)
