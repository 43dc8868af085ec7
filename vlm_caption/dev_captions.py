"""Captions of dev images while a model trains, and what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from .composition import MAX_NEW_TOKENS
from .data import Place
from .data.collator import CaptionCollator
from .metrics import score
from .modeling_captioner import CaptionerForConditionalGeneration


def caption_rows(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> list[str]:
    """A caption of each row, or an answer to its first question.

    They are written by the model's generation settings, except that nothing is drawn at random; and the model is in
    eval mode meanwhile: training goes on as if nobody had asked.

    Args:
        model: in any mode.
        collator: the rows'.
        rows: with `index`.
        batch_size: images at a time.
    """
    training = model.training
    model.eval()
    texts = []
    for start in range(0, len(rows), batch_size):
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            texts += caption_batch(
                model,
                collator,
                rows[start : start + batch_size],
                do_sample=False,
                max_new_tokens=model.generation_config.max_new_tokens or MAX_NEW_TOKENS,
            )
    model.train(training)
    return texts


def caption_batch(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], **generation: Any
) -> list[str]:
    """A caption of each row, or an answer to its first question, all written together.

    Args:
        model: in eval mode.
        collator: the rows'.
        rows: with `index`.
        **generation: settings of `generate` in place of the model's own.
    """
    images = {name: tensor.to(model.device) for name, tensor in collator.encode_images(list(rows)).items()}
    prompts = {"input_ids": [collator.prompt_ids(row) for row in rows]}
    inputs = collator.tokenizer.pad(prompts, return_tensors="pt").to(model.device)  # on the left
    outputs = model.generate(**inputs, num_return_sequences=1, return_dict_in_generate=False, **images, **generation)
    texts = collator.processor.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def score_cider(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> float:
    """CIDEr, a fraction, of the model's captions of some rows. Of several processes each captions its share.

    Document frequencies are those of the rows' references: other rows, or more of them, give other values.

    Args:
        model, collator, batch_size: as of `caption_rows`.
        rows: with `index` and `captions`, the references; the same in all processes.
    """
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    process = torch.distributed.get_rank() if processes > 1 else 0
    shares = gather_object([caption_rows(model, collator, rows[process::processes], batch_size)])
    captions = [""] * len(rows)
    for number, share in enumerate(shares):
        captions[number::processes] = share
    return score(captions, [first_references(row) for row in rows], ("cider",)).corpus["cider"]


def row_name(image: str, is_vector: bool) -> str:
    """What people are told that a row is of: a picture's name without its folders, or what the vectors' file says."""
    return image if is_vector else Place.parse(image).short_name


def first_references(row: Mapping[str, Any]) -> list[str]:
    """What a row's caption of `caption_rows` is compared with: its captions, or the answers to its first question."""
    if "questions" not in row:
        return row["captions"]
    pairs = zip(row["questions"], row["captions"], strict=True)
    return [answer for question, answer in pairs if question == row["questions"][0]]
