"""Where a captioner looked: which patches of a picture speak for a caption.

The method is integrated gradients (Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017) on
the features of the patches. The path starts at a picture without places, in which every patch has the mean features of
all patches, and ends at the picture. The numbers of the patches then add up to what the places gave the caption: the
difference between its log-probabilities for the two, but for the error of the sum over the path. This needs gradients
of the projector and the language model alone, so it depends neither on the attention's implementation nor on what is
frozen.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..images.opening import ImageSource, open_image
from .generation import Generation, token_log_probs

if TYPE_CHECKING:
    from .captioner import Captioner

# Points on the path, which are one batch. With 8, the sum is within a few hundredths of a nat for photos.
STEPS = 8


def heat_map(
    captioner: "Captioner", image: ImageSource, text: str, *, prompt: str = "", question: str | None = None
) -> np.ndarray:
    """Returns what each patch of a picture gave a caption.

    Args:
        captioner: The captioner.
        image: The picture, as `open_image` takes it.
        text: The caption.
        prompt: The prompt that the caption continues; by default that of training.
        question: The text for the prompt's `{question}`.

    Returns:
        float32 [rows, columns], in nats. Patches above 0 speak for the caption and those below 0 against it.

    Raises:
        ImageError: The picture cannot be opened.
        ValueError: The caption is empty, the prompt is wrong, or the captioner has no features of single patches.
    """
    if not has_places(captioner):
        raise ValueError("This captioner takes a picture as one vector, so no place in it can be told from another.")
    if not text.strip():
        raise ValueError("The caption is empty: give its text.")
    core = captioner.model.core
    pixel_values = captioner.processor.image_processor(open_image(image), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = core.encode_images(pixel_values).pooler_output  # [1, N, D]
        patches = core.patch_map(pixel_values)  # [1, D, rows, columns]
    rows = (
        patches.shape[-2:] if captioner.model.config.image_grid is None else (captioner.model.config.image_grid,) * 2
    )
    front = tokens[:, : tokens.shape[1] - rows[0] * rows[1]]  # pooled vectors, class and register tokens

    def log_prob(points: torch.Tensor) -> torch.Tensor:
        """Returns the log-probability of the caption at each point of the path, float [S]."""
        places = nn.functional.adaptive_avg_pool2d(points, rows).flatten(2).transpose(1, 2)
        features = torch.cat([front.expand(len(points), -1, -1), places], dim=1)
        generation = _as_generation(captioner, text, prompt, question, len(points))
        return token_log_probs(captioner.model, generation, features).sum(dim=1)

    return _integrate(log_prob, patches.mean(dim=(2, 3), keepdim=True), patches)[0].float().cpu().numpy()


def has_places(captioner: object) -> bool:
    """Returns whether `heat_map` works with a captioner: its model is of torch and takes patches of pictures."""
    config = getattr(getattr(captioner, "model", None), "config", None)
    return config is not None and config.feature_size is None and config.image_tokens != "pooled"


def seen_box(captioner: "Captioner", width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the part of a picture that the captioner sees: left, top, right, bottom, in pixels.

    It is the whole picture unless the image processor cuts out its middle.

    Args:
        captioner: The captioner.
        width: The picture's width in pixels.
        height: The picture's height in pixels.
    """
    settings = captioner.processor.image_processor.to_dict()
    crop, size = settings.get("crop_size"), settings.get("size") or {}
    if not (settings.get("do_center_crop") and crop):
        return 0, 0, width, height
    shortest = min(width, height) / size["shortest_edge"] if "shortest_edge" in size else None
    sides = [
        min(side, round(crop[name] * (shortest or side / size.get(name, crop[name]))))
        for name, side in (("width", width), ("height", height))
    ]
    left, top = (width - sides[0]) // 2, (height - sides[1]) // 2
    return left, top, left + sides[0], top + sides[1]


def _integrate(
    log_prob: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Returns the integrated gradients on the straight path between features, summed over them: float [1, H, W]."""
    shares = (torch.arange(STEPS, device=end.device, dtype=end.dtype) + 0.5) / STEPS  # the midpoint rule
    points = (start + shares[:, None, None, None] * (end - start)).requires_grad_()
    [gradients] = torch.autograd.grad(log_prob(points).sum(), points)
    return (gradients.mean(dim=0, keepdim=True) * (end - start)).sum(dim=1)


def _as_generation(captioner: "Captioner", text: str, prompt: str, question: str | None, count: int) -> Generation:
    """Returns a caption as if `generate` had written it `count` times."""
    processor = captioner.processor
    head, [tail] = processor.encode_prompts([question], prompt)
    words = processor.tokenizer(
        processor.answer_separator(prompt or processor.prompt) + text,
        add_special_tokens=False,
        split_special_tokens=True,
    ).input_ids
    ids = torch.tensor([[*head, *tail, *words, processor.end_token_id]], device=captioner.model.device)
    new = len(words) + 1
    mask = torch.ones(count, ids.shape[1] - new, dtype=torch.long, device=ids.device)
    is_caption = torch.ones(count, new, dtype=torch.bool, device=ids.device)
    return Generation(ids.expand(count, -1), mask, is_caption, [text] * count, [True] * count)
