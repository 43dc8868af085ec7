"""Consensus decoding: of several captions of a picture, those that agree most with the others.

This is minimum Bayes risk decoding (Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine
Translation", NAACL 2004) with CIDEr-D as the gain. Devlin et al. ("Exploring Nearest Neighbor Approaches for Image
Captioning", 2015) chose among the captions of similar pictures in this way.
"""

import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from ..core.errors import ConfigError, DataError
from ..core.files import write_text
from ..core.text import read_text
from ..core.untrusted import load_json
from ..metrics.cider_d import CiderD
from ..metrics.tokens import Tokenizer, choose_tokenizer, tokenize_with

# Beside a checkpoint.
FREQUENCIES_NAME = "document_frequencies.json"

# An n-gram of fewer images counts as one of a single image.
MIN_IMAGES = 5


class DocumentFrequencies:
    """In the captions of how many images of a corpus each n-gram occurs; see [`count`].

    Args:
        table: The object of the file.

    Raises:
        ValueError: It is another one.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        if not (
            isinstance(table, dict)
            and table.get("tokenizer") in ("ptb", "characters")
            and isinstance(table.get("images"), int)
            and isinstance(table.get("counts"), dict)
            and all(isinstance(count, int) and 0 < count <= table["images"] for count in table["counts"].values())
        ):
            raise ValueError("expected an object with tokenizer, images and counts")
        self.table = table
        self.tokenizer: Tokenizer = table["tokenizer"]
        self._cider = CiderD.from_counts(table["images"], {tuple(k.split(" ")): n for k, n in table["counts"].items()})

    @classmethod
    def count(cls, captions: Iterable[Sequence[str]]) -> Self:
        """Counts the n-grams of a corpus.

        Args:
            captions: The captions of each image.

        Raises:
            ValueError: There are no images.
        """
        of_images = list(captions)
        tokenizer = choose_tokenizer(caption for texts in of_images for caption in texts)
        tokens = iter(tokenize_with(tokenizer, [caption for texts in of_images for caption in texts]))
        counts = CiderD.count([[next(tokens) for _ in texts] for texts in of_images])
        kept = {" ".join(ngram): n for ngram, n in sorted(counts.items()) if n >= MIN_IMAGES}
        return cls({"tokenizer": tokenizer, "images": len(of_images), "counts": kept})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Loads the file that `save` wrote, or counts the captions of a text file: one in each line, of an image each.

        Raises:
            DataError: The file cannot be read, or holds something else.
        """
        text = read_text(Path(path))
        try:
            if Path(path).suffix == ".json":
                return cls(load_json(text, str(path)))
            return cls.count([[line] for line in text.splitlines() if line.strip()])
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path}: the frequencies of n-grams cannot be read ({error}).") from error

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `document_frequencies.json` to a folder, such as that of a checkpoint, and returns its path.

        Raises:
            OSError: The file cannot be written.
        """
        path = Path(folder) / FREQUENCIES_NAME
        write_text(path, json.dumps(self.table, ensure_ascii=False, separators=(",", ":")) + "\n")
        checkpoint_frequencies.cache_clear()  # it may hold what was there before
        return path

    def rank(self, captions: Sequence[str], references: Sequence[str] = ()) -> list[int]:
        """Returns the places of captions in the order of their mean CIDEr-D, the highest first.

        Equal ones keep their order, and empty ones come last.

        Args:
            captions: Captions of one picture, the likeliest first.
            references: What each is compared with; if there are none, the other captions.
        """
        tokens = tokenize_with(self.tokenizer, captions)
        if references:
            scores = self._cider.score(tokens, tokenize_with(self.tokenizer, references))
        else:
            scores = [
                self._cider.score([own], [*tokens[:place], *tokens[place + 1 :]])[0] if len(tokens) > 1 else 0.0
                for place, own in enumerate(tokens)
            ]
        scores = [score if own else -1.0 for own, score in zip(tokens, scores, strict=True)]
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


@lru_cache(maxsize=2)
def checkpoint_frequencies(checkpoint: str) -> DocumentFrequencies:
    """Returns the document frequencies beside a checkpoint.

    Raises:
        ConfigError: There are none.
        DataError: They cannot be read.
    """
    path = Path(checkpoint) / FREQUENCIES_NAME
    if not checkpoint or not path.is_file():
        raise ConfigError(
            f"There is no {FREQUENCIES_NAME} beside the checkpoint, and a consensus needs to know which words are "
            "frequent: give captions, with --consensus-captions FILE or document_frequencies."
        )
    return DocumentFrequencies.load(path)
