"""Pulls from the Hub that HF_ENDPOINT names what hub_push.py put there; run by test_hub.py.

Its argument is the folder of hub_push.py, which holds the logits to compare with. This process has a cache of its own.
"""

import json
import sys
from pathlib import Path

import huggingface_hub
import torch
from safetensors.torch import load_file
from tiny_models import picture
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_caption import Captioner

folder = Path(sys.argv[1])


def equals(model: torch.nn.Module, processor, name: str) -> bool:
    inputs = processor(images=picture(), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    return torch.allclose(logits, load_file(folder / f"{name}.safetensors")["logits"], rtol=1e-5, atol=1e-5)


found = {}
captioner = Captioner.from_pretrained("org/bridge", device="cpu")
found["bridge, updated"] = equals(captioner.model, captioner.processor, "second")
found["caption"] = captioner.caption(picture())[0].text is not None

nightly = AutoModelForImageTextToText.from_pretrained("org/bridge", revision="nightly/1")
processor = AutoProcessor.from_pretrained("org/bridge", revision="nightly/1")
found["branch"] = equals(nightly, processor, "first")
found["settings"] = nightly.generation_config.max_new_tokens == 7
found["revision of the tower"] = nightly.config.vision_backbone["revision"] == "v2"
nightly.push_to_hub("org/passed-on")

whole = Captioner.from_pretrained("org/whole", device="cpu")
found["whole"] = equals(whole.model, whole.processor, "first")
weights = AutoModelForImageTextToText.from_pretrained("someone/whole-model")
found["whole model"] = equals(weights, processor, "first")
found["settings of the whole"] = weights.generation_config.max_new_tokens == 7
found["cached"] = sorted(repo.repo_id for repo in huggingface_hub.scan_cache_dir().repos)
print(json.dumps(found))
