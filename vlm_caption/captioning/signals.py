"""What a model in torch says of its captions, for `confidence`."""

import numpy as np
import torch

from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.configuration import CaptionerConfig
from ..towers.processor import CaptionerProcessor
from .confidence import caption_signals
from .generation import Generation, token_log_probs, without_images
from .picture_vectors import has_pooled_vector, vector_size


def pool_features(features: torch.Tensor) -> torch.Tensor:
    """Returns one vector for each picture: its first token, which may be the tower's pooled one, and their mean.

    Args:
        features: float [I, N, D_vision].

    Returns:
        float [I, 2 · D_vision]; [I, D_vision] if N is 1.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    return torch.cat([features[:, 0], features.mean(dim=1)], dim=1)


def pooled_size(config: CaptionerConfig) -> int:
    """Returns how many numbers `pool_features` gives for a picture of a captioner with this config."""
    return config.vision_feature_size * (1 if config.vision_seq_length == 1 else 2)


def place_of_vectors(config: CaptionerConfig) -> int:
    """Returns where `picture_vectors` begin in what `pool_features` returns."""
    end = config.vision_feature_size if has_pooled_vector(config) else pooled_size(config)  # first token, or mean
    return end - vector_size(config)


def pooled(features: torch.Tensor) -> np.ndarray:
    """Returns the pooled features of pictures, float64 [I, D], from their features, float [I, N, D_vision]."""
    return pool_features(features.detach().cpu().double()).numpy()


def measure_signals(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    generation: Generation,
    log_probs: torch.Tensor,
) -> np.ndarray:
    """Returns `CAPTION_SIGNALS` of captions, float64 [R, 4]. This runs the language model once.

    Args:
        model: The model, in eval mode.
        processor: The model's processor.
        generation: The captions.
        log_probs: What `token_log_probs` returned for them.
    """
    prior = token_log_probs(model, without_images(model, processor, generation), None)
    return caption_signals(*(part.cpu().numpy() for part in (log_probs, prior, generation.is_caption)))
