"""Images with their captions, from the formats that corpora come in.

    dataset = load_captions("../shared/flickr8k", "train")  # columns: image, captions
    picture = open_image(open_place(dataset[0]["image"]))

A reader of the corpus's format (`FORMATS`) yields one `Record`, or one `Problem`, after the other. `store.py` cleans
the captions, gathers them by image, settles the splits, and writes an Arrow file for each split into the cache. A
`Corpus` gives these as memory-mapped datasets. Nothing is held in memory as a whole, and pictures stay where they are.

To see what is wrong with a corpus without an exception at the first fault, go through `open_corpus(...).problems()`,
or give `on_problem` to `Corpus.load`. `read_records` yields what the reader does. docs/data.md describes the formats.
"""

from ..core.errors import DataError
from .bad_images import BAD_IMAGES_NAME, BadImages, PictureOpener, check_pictures
from .captions import CaptionChoice, Cleaning, TargetChoice, clean_caption
from .corpus import Corpus, ask_one_by_one, count_captions, drop_rows
from .formats import FORMATS, load_captions, open_corpus, read_records
from .places import Place, open_place
from .records import Format, Problem, Reader, Record, Source
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
