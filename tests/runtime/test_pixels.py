"""Pixel values: to the last bit those of transformers' image processors for Pillow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import picture
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_caption.core.errors import ConfigError
from vlm_caption.export.settings import pixel_settings
from vlm_caption.runtime.pixels import to_pixels

PROCESSORS = {
    "DINOv2": BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}),
    "DINOv2, square": BitImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False),
    "CLIP": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "CLIP, cropped alone": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 31, "width": 46}),
    "SigLIP": SiglipImageProcessorPil(size={"height": 32, "width": 40}),
    "ViT": ViTImageProcessorPil(size={"height": 24, "width": 24}, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@given(width=st.integers(1, 120), height=st.integers(1, 120), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pixels_are_those_of_the_image_processor(name, width, height, seed):
    image = picture(seed, width, height)
    expected = PROCESSORS[name](image, return_tensors="np")["pixel_values"]
    pixels = to_pixels(image, pixel_settings(PROCESSORS[name]))
    assert pixels.dtype == expected.dtype == np.float32
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("size", [(100_000_000, 1), (1, 100_000_000)])
def test_a_line_is_not_resized_to_a_picture_without_end(size):
    class Line:  # as large as no picture of a test should be
        width, height = size

    Line.size = size
    with pytest.raises(MemoryError, match="too thin"):
        to_pixels(Line(), pixel_settings(PROCESSORS["DINOv2"]))


def test_an_image_processor_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="longest_edge"):
        pixel_settings(CLIPImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}))
