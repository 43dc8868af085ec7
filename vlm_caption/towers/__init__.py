"""Pretrained towers: where they come from, how they are loaded, and how two of them become a captioner."""

# First, for the reason given in `model/__init__.py`.
import transformers as transformers
