"""Joins this package to transformers.

Two things happen as soon as both are imported, in either order:

- The Auto classes of transformers learn our classes, so that `AutoModelForImageTextToText.from_pretrained` loads a
  captioner.
- The classes in `model/` get the functions that they cannot import themselves, because their files also travel inside
  full checkpoints, without the rest of this package.

`import vlm_caption` alone imports neither torch nor transformers. See PEP 369 for the idea of a post-import hook.
"""

from types import ModuleType
from typing import Any

import wrapt


def _upload_checkpoint(*args: Any, **kwargs: Any) -> Any:
    from .hub.upload import upload_checkpoint

    return upload_checkpoint(*args, **kwargs)


@wrapt.when_imported("transformers")
def register(_transformers: ModuleType) -> None:
    """Registers the classes of this package with transformers, and completes them.

    Args:
        _transformers: The imported module, unused: transformers puts another one in its place.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .towers.captioner import CaptionerForConditionalGeneration, CaptionerModel, CaptionerPreTrainedModel
    from .towers.configuration import CaptionerConfig
    from .towers.processor import CaptionerProcessor

    CaptionerPreTrainedModel.upload_checkpoint = _upload_checkpoint

    AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
    AutoProcessor.register(CaptionerConfig, CaptionerProcessor)
    AutoModel.register(CaptionerConfig, CaptionerModel)
    AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)
