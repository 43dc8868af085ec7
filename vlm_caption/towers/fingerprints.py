"""Identifies a captioner by its trained weights."""

import json
from typing import Any

from ..core.digests import digest_tensors
from ..model.adapters import is_adapter
from ..model.freezing import PARTS, holds_trained_weights, module_of
from .captioner import CaptionerPreTrainedModel


def weights_fingerprint(model: CaptionerPreTrainedModel) -> str:
    """Returns a digest of the weights that do not belong to a frozen tower: "sha256:" and 64 hex digits."""
    core: Any = model.base_model
    trained = tuple(f"{tower}." for tower in PARTS if holds_trained_weights(core, tower))
    digest = digest_tensors(
        (name, tensor)
        for name, tensor in core.state_dict().items()
        if module_of(name) == "projector" or is_adapter(name) or name.startswith(trained)
    )
    for part in PARTS.values():
        if adapter := getattr(core.config, f"{part}_adapter"):
            digest.update(json.dumps([part, adapter["alpha"]]).encode())  # it is in no weight
    return f"sha256:{digest.hexdigest()}"
