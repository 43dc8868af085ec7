from .comparison import write_comparison
from .gallery import write_gallery
from .page import Thumbnail, make_thumbnail, write_page

__all__ = [
    "Thumbnail",
    "make_thumbnail",
    "write_comparison",
    "write_gallery",
    "write_page",
]
