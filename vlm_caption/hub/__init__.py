"""Model cards and uploads to the Hugging Face Hub.

Training and evaluation record facts about a checkpoint in `model_card.json`. A model card is rendered from these
facts, and an upload contains the card and the checkpoint in one commit.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
