from .description import read_description, with_description
from .finding import PassedOver, find_images
from .limits import MAX_BYTES, MAX_PIXELS
from .opening import IMAGE_SUFFIXES, ImageSource, describe, open_image

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageSource",
    "PassedOver",
    "describe",
    "find_images",
    "open_image",
    "read_description",
    "with_description",
]
