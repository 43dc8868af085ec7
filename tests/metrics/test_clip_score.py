"""CLIPScore with a tiny random model."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from vlm_caption.core.errors import ImageError
from vlm_caption.metrics import ScorerMissingError
from vlm_caption.metrics.clip_score import score_clip

CAPTIONS = ["red", "a blue square"]


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (20, 12), path.stem).save(path)
    return paths


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a CLIP model of 29 positions that reads letters."""
    pytest.importorskip("torchmetrics")
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=29)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": len(tokens), "max_position_embeddings": 29, **ends},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return str(folder)


class TestScoreClip:
    def test_is_the_stretched_cosine_of_picture_and_caption(self, images, model):
        found = score_clip(images, CAPTIONS, model)
        clip, processor = CLIPModel.from_pretrained(model).eval(), CLIPProcessor.from_pretrained(model)
        expected = []
        for path, caption in zip(images, CAPTIONS, strict=True):
            with torch.inference_mode():
                output = clip(
                    **processor(text=f"A photo depicts {caption}", images=Image.open(path), return_tensors="pt")
                )
            expected.append(2.5 * max(float(output.image_embeds[0] @ output.text_embeds[0]), 0))
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.any(found > 0)

    def test_cuts_captions_that_the_model_cannot_read_whole(self, images, model):
        long, cut = "red " * 20, "red red red red re"  # a token is a letter, 13 are before, and two more mark the ends
        first, second = score_clip([images[0]] * 2, [long, cut], model)
        assert first == pytest.approx(second, abs=1e-5)

    def test_says_that_torchmetrics_is_missing(self, images, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchmetrics.multimodal.clip_score", None)
        with pytest.raises(ScorerMissingError, match=r"needs torchmetrics: pip install torchmetrics"):
            score_clip(images, CAPTIONS, "anything")

    def test_says_that_the_model_cannot_be_loaded(self, images, tmp_path):
        pytest.importorskip("torchmetrics")
        with pytest.raises(ScorerMissingError, match=r"the model .*nothing' cannot be loaded"):
            score_clip(images, CAPTIONS, str(tmp_path / "nothing"))

    def test_names_a_picture_that_cannot_be_opened(self, images, model, tmp_path):
        with pytest.raises(ImageError, match="gone"):
            score_clip([tmp_path / "gone.png"], ["red"], model)
