"""Checks whether a language model can be trained on packed captions, by trying: there are many families.

Packed captions need a model that looks only where its attention mask lets it, at positions that it is told. Recurrent
models (Mamba) carry what they read from one caption into the next, whatever the mask; models with ALiBi (BLOOM, MPT)
count distances along the row.
"""

import torch

from ..core.errors import ConfigError
from ..towers.captioner import CaptionerForConditionalGeneration

_PREFIX, _FIRST, _SECOND = 4, 3, 4  # tokens

# Families whose fault does not show in a row this short, or not in bfloat16.
_REFUSED = {
    "gpt_neo": "counts the windows of its local layers along the row",
    "mpt": "counts distances along the row",
}
# Root mean square difference, in standard deviations of the logits. Rounding causes some 1e-6 in float32 and 1e-2 in
# bfloat16, because machines add rows of other lengths in another order.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@torch.no_grad()
def check_packing(model: CaptionerForConditionalGeneration) -> None:
    """Checks that a caption packed behind another one gets the logits that it gets alone.

    Args:
        model: The captioner in float32, its language model in float32 or bfloat16, before anything is trained.

    Raises:
        ConfigError: The language model gives other logits, or takes no such mask.
    """
    family = model.config.text_config.model_type
    refusal = (
        f"model.language: {family} language models cannot be trained here: an image's captions are packed in one row, "
        "and this one {}. Take one whose attention follows masks and positions: docs/language_models.md lists some."
    )
    if family in _REFUSED:
        raise ConfigError(refusal.format(_REFUSED[family]))
    length = _PREFIX + _FIRST + _SECOND
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.text_config.vocab_size, (1, length), generator=generator).to(model.device)
    places = torch.arange(length, device=model.device)
    in_first = (places >= _PREFIX) & (places < _PREFIX + _FIRST)
    in_second = places >= _PREFIX + _FIRST
    may_look = (places[:, None] >= places) & ~(in_second[:, None] & in_first)  # [T, T]
    positions = torch.where(in_second, places - _FIRST, places)
    alone = ids[:, ~in_first]
    training = model.training
    model.eval()  # dropout differs from one pass to the next
    try:
        packed = model(input_ids=ids, attention_mask=may_look[None, None], position_ids=positions[None])
        expected = model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[:, _PREFIX:]
    except Exception as error:  # each family refuses an unknown argument in its own way
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(refusal.format(f"takes no mask or positions for that ({reason})")) from error
    finally:
        model.train(training)
    expected = expected.float()
    difference = (packed.logits[:, in_second].float() - expected).square().mean().sqrt()
    if not difference <= _TOLERANCE[model.core.language_model.dtype] * expected.std():
        raise ConfigError(refusal.format("lets one caption see another"))
