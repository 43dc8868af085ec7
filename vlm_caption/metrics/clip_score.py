"""CLIPScore: how well a caption fits its picture in the eyes of a CLIP model, without references."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from ..core.console import first_line_of, progress
from ..core.errors import ScorerMissingError
from ..images.opening import ImageSource, open_image

# Hessel et al. stretch the cosine, which hardly ever passes 0.4.
_STRETCH = 2.5
_PROMPT = "A photo depicts"


def score_clip(images: Iterable[ImageSource], captions: Sequence[str], model: str) -> np.ndarray:
    """Returns the CLIPScore of each caption [N], 2.5 × max(cosine, 0) (Hessel et al., EMNLP 2021), by torchmetrics.

    As in the paper, the text is "A photo depicts" and the caption. Published values are those of
    `openai/clip-vit-base-patch32`. A model whose vision tower is also the captioner's favours the captioner: choose
    another one. Captions that are too long for the model are cut.

    Args:
        images: The images in any form that `open_image` takes, read one at a time.
        captions: One for each image.
        model: A name on the Hub, or a folder.

    Raises:
        ScorerMissingError: torchmetrics is not installed, or there is no such model.
        ImageError: A picture cannot be opened.
    """
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore
    except ImportError as error:
        raise ScorerMissingError("CLIPScore needs torchmetrics: pip install torchmetrics") from error
    try:
        parts = _TensorModel.from_pretrained(model), _CuttingProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = first_line_of(error)
        raise ScorerMissingError(f"CLIPScore: the model {model!r} cannot be loaded ({reason})") from error
    metric = CLIPScore(model_name_or_path=lambda: parts)
    scores = []
    with torch.inference_mode():
        pairs = zip(images, captions, strict=True)
        for image, caption in progress(pairs, total=len(captions), desc="CLIPScore"):
            pixels = torch.from_numpy(np.array(open_image(image))).permute(2, 0, 1)  # [3, H, W], uint8
            scores.append(_STRETCH * float(metric(pixels, f"{_PROMPT} {caption}")) / 100)
    return np.array(scores)


class _TensorModel(CLIPModel):
    """Gives features as tensors, which torchmetrics expects; in transformers 5 they are inside a model output."""

    def get_image_features(self, pixel_values):
        return super().get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return super().get_text_features(input_ids, attention_mask).pooler_output


class _CuttingProcessor(CLIPProcessor):
    """Cuts long captions before their end token; torchmetrics would cut that off, and CLIP reads its answer there."""

    def __call__(self, images=None, text=None, **kwargs):
        if text is not None:
            kwargs["truncation"] = True
        return super().__call__(images=images, text=text, **kwargs)
