from .bad_images import BAD_IMAGES_NAME, BadImages, PictureOpener, check_pictures
from .captions import CaptionChoice, Cleaning, TargetChoice, clean_caption
from .corpus import Corpus, ask_one_by_one, count_captions, drop_rows
from .formats import FORMATS, load_captions, open_corpus, read_records
from .places import Place, open_place
from .records import DataError, Format, Problem, Reader, Record, Source
from .vectors import Vectors, open_vectors

__all__ = [
    "BAD_IMAGES_NAME",
    "FORMATS",
    "BadImages",
    "CaptionChoice",
    "Cleaning",
    "Corpus",
    "DataError",
    "Format",
    "PictureOpener",
    "Place",
    "Problem",
    "Reader",
    "Record",
    "Source",
    "TargetChoice",
    "Vectors",
    "ask_one_by_one",
    "check_pictures",
    "clean_caption",
    "count_captions",
    "drop_rows",
    "load_captions",
    "open_corpus",
    "open_place",
    "open_vectors",
    "read_records",
]
