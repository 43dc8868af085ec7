"""Images with their captions, from the formats that corpora come in.

    dataset = load_captions("../shared/flickr8k", "train")  # columns: image, captions
    picture = open_image(open_place(dataset[0]["image"]))

A reader of the corpus's format (`FORMATS`) yields one `Record`, or one `Problem`, after the other. `store.py` cleans
the captions, gathers them by image, settles the splits, and writes an Arrow file for each split into the cache. A
`Corpus` gives these as memory-mapped datasets. Nothing is held in memory as a whole, and pictures stay where they are.

To see what is wrong with a corpus without an exception at the first fault, go through `open_corpus(...).problems()`,
or give `on_problem` to `Corpus.load`. `read_records` yields what the reader does. docs/data.md describes the formats.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
