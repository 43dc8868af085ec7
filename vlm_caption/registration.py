"""Joins this package to transformers.

Two things happen as soon as both are imported, in either order:

- The Auto classes of transformers learn our classes, so that `AutoModelForImageTextToText.from_pretrained` loads a
  captioner.
- The classes in `model/` get the functions that they cannot import themselves, because their files also travel inside
  full checkpoints, without the rest of this package.

`import vlm_caption` alone imports neither torch nor transformers. See PEP 369 for the idea of a post-import hook.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt


def _load_towers(*args: Any, **kwargs: Any) -> Any:
    from .towers.composition import load_towers

    return load_towers(*args, **kwargs)


def _write_upload_card(model: Any, folder: Path, repo_id: str, **kwargs: Any) -> list[str]:
    from .hub.card import write_upload_card

    return write_upload_card(model, folder, repo_id, **kwargs)


@wrapt.when_imported("transformers")
def register(_transformers: ModuleType) -> None:
    """Registers the classes of this package with transformers, and completes them.

    Args:
        _transformers: The imported module, unused: transformers puts another one in its place.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .images.opening import open_image
    from .model.configuration_captioner import CaptionerConfig
    from .model.modeling_captioner import (
        CaptionerForConditionalGeneration,
        CaptionerModel,
        CaptionerPreTrainedModel,
    )
    from .model.processing_captioner import CaptionerProcessor

    CaptionerProcessor.open_image = staticmethod(open_image)
    CaptionerPreTrainedModel.load_towers = staticmethod(_load_towers)
    CaptionerPreTrainedModel.write_upload_card = _write_upload_card

    AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
    AutoProcessor.register(CaptionerConfig, CaptionerProcessor)
    AutoModel.register(CaptionerConfig, CaptionerModel)
    AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)
