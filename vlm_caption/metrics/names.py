"""What metrics are called: keys in Python and JSON, and names in tables."""

from .ngram_scores import BLEU_ORDER

# COCO's, in the order of papers' tables.
COCO_METRICS = (*(f"bleu_{n}" for n in range(1, BLEU_ORDER + 1)), "rouge_l", "cider", "meteor", "spice")

METRIC_NAMES = {
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, BLEU_ORDER + 1)},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "vqa_accuracy": "VQA accuracy",
    "unseen": "not a training caption",
}

# What tokens are called in tables, by `Scores.tokenizer`.
TOKEN_NAMES = {"ptb": "words", "characters": "characters"}
