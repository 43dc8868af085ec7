"""Where a captioner looked: which places of a picture speak for a caption.

Each place is covered in turn with the picture's mean colour, and the log-probability of the caption is taken again
(occlusion; Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014). The difference is
what the place gave the caption. It needs no gradients, attention weights or features of patches, so it is the same for
every tower, projector and implementation of attention.

Gradients with respect to the patches' features do not tell places apart here: a vision transformer has mixed the
patches by then, and the language model writes behind the last image token, which gets most of the gradient.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..images.opening import ImageSource, open_image
from .generation import Generation, token_log_probs

if TYPE_CHECKING:
    from .captioner import Captioner

GRID = 7


@torch.inference_mode()
def heat_map(
    captioner: "Captioner",
    image: ImageSource,
    text: str,
    *,
    prompt: str = "",
    question: str | None = None,
    grid: int = GRID,
) -> np.ndarray:
    """Returns what each place of a picture gave a caption.

    Args:
        captioner: The captioner.
        image: The picture, as `open_image` takes it.
        text: The caption.
        prompt: The prompt that the caption continues; by default that of training.
        question: The text for the prompt's `{question}`.
        grid: The number of rows, and of columns, in which places are covered. The time grows with its square: the
            picture is encoded, and the caption scored, once for each place.

    Returns:
        float32 [grid, grid], in nats: by how much the caption is less likely with the place covered. Below 0, it is
        likelier. The places are those of what [`seen_box`] returns.

    Raises:
        ImageError: The picture cannot be opened.
        ValueError: The caption is empty, the prompt is wrong, or the captioner takes vectors.
    """
    captioner.check_vision_tower()
    if not text.strip():
        raise ValueError("The caption is empty: give its text.")
    pixel_values = captioner.processor.picture_to_pixels(open_image(image))

    def log_probs(pictures: torch.Tensor) -> torch.Tensor:
        """Returns the log-probability of the caption for each picture, float [I]."""
        features = captioner.model.core.encode_images(pictures).pooler_output
        written = _as_generation(captioner, text, prompt, question, len(pictures))
        return token_log_probs(captioner.model, written, features).sum(dim=1)

    rows = [log_probs(row) for row in _covered(pixel_values, grid)]
    return (log_probs(pixel_values) - torch.stack(rows)).float().cpu().numpy()


def _covered(pixel_values: torch.Tensor, grid: int) -> Iterator[torch.Tensor]:
    """Yields a picture float [1, 3, H, W] with each place of a row covered, float [grid, 3, H, W], row after row."""
    height, width = pixel_values.shape[-2:]
    mean = pixel_values.mean(dim=(2, 3), keepdim=True)
    for row in range(grid):
        covered = pixel_values.repeat(grid, 1, 1, 1)
        top, bottom = height * row // grid, height * (row + 1) // grid
        for column in range(grid):
            left, right = width * column // grid, width * (column + 1) // grid
            covered[column, :, top:bottom, left:right] = mean[0]
        yield covered


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
    if "shortest_edge" in size:
        scales = [min(width, height) / size["shortest_edge"]] * 2
    else:
        scales = [width / size["width"], height / size["height"]]
    seen_width = min(width, round(crop["width"] * scales[0]))
    seen_height = min(height, round(crop["height"] * scales[1]))
    left, top = (width - seen_width) // 2, (height - seen_height) // 2
    return left, top, left + seen_width, top + seen_height


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
