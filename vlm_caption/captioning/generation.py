"""Captions of dev images while a model trains, and what they are worth."""

from collections.abc import Sequence
from typing import Any

import torch

from ..data.collator import CaptionCollator
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.composition import MAX_NEW_TOKENS


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
