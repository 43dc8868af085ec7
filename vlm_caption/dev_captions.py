"""Captions of dev images while a model trains, and what they are worth."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from .composition import MAX_NEW_TOKENS
from .data.collator import CaptionCollator
from .metrics import score
from .modeling_captioner import CaptionerForConditionalGeneration


def caption_rows(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> list[str]:
    """A caption of each row, or an answer to its first question.

    They are written greedily, as long as the model's generation settings let them be. Nothing is drawn at random, and
    the model is in eval mode meanwhile: training goes on as if nobody had asked.

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
        batch = rows[start : start + batch_size]
        images = {name: tensor.to(model.device) for name, tensor in collator.encode_images(list(batch)).items()}
        prompts = {"input_ids": [collator.prompt_ids(row) for row in batch]}
        inputs = collator.tokenizer.pad(prompts, return_tensors="pt").to(model.device)  # on the left
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            outputs = model.generate(
                **inputs,
                **images,
                do_sample=False,
                num_beams=1,
                max_new_tokens=model.generation_config.max_new_tokens or MAX_NEW_TOKENS,
            )
        written = outputs[:, inputs["input_ids"].shape[1] :]
        texts += collator.processor.batch_decode(written, skip_special_tokens=True)
    model.train(training)
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
    return score(captions, [_references(row) for row in rows], ("cider",)).corpus["cider"]


def _references(row: dict) -> list[str]:
    """A row's captions, or the answers to its first question."""
    if "questions" not in row:
        return row["captions"]
    pairs = zip(row["questions"], row["captions"], strict=True)
    return [answer for question, answer in pairs if question == row["questions"][0]]
