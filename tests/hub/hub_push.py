"""Pushes to the Hub that HF_ENDPOINT names, in every way there is; run by test_hub.py.

Its argument is an empty folder, for what it pushed: checkpoints, and logits to compare with.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from fake_hub import READER
from safetensors.torch import save_file
from tiny_models import picture

from vlm_caption import Captioner, CaptionerForConditionalGeneration, compose, write_model_card
from vlm_caption.hub.facts import record_evaluation
from vlm_caption.towers.captioner import CaptionerPreTrainedModel

folder = Path(sys.argv[1])
torch.manual_seed(0)
model, processor = compose("org/vision", "org/language", vision_revision="v2", image_tokens="patches", image_grid=2)
model.generation_config.max_new_tokens = 7
inputs = processor(images=picture(), return_tensors="pt")


def save_logits(name: str) -> None:
    with torch.no_grad():
        save_file({"logits": model.eval()(**inputs).logits}, folder / f"{name}.safetensors")


def error_of(push: Callable) -> list[str]:
    try:
        push()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["none", ""]


save_logits("first")
checkpoint = folder / "checkpoint"
model.save_pretrained(checkpoint)
processor.save_pretrained(checkpoint)
record_evaluation(
    model,
    checkpoint,
    {
        "data": "colours",
        "split": "test",
        "images": 3,
        "prompt": "",
        "generation": {"num_beams": 2},
        "metrics": {"loss": 1.2345, "bleu_4": 0.25, "cider": 0.5},
        "command": "python scripts/evaluate.py --split test",
    },
)
write_model_card(model, checkpoint)

captioner = Captioner.from_pretrained(checkpoint, device="cpu")
bridge = captioner.push_to_hub("org/bridge")
captioner.push_to_hub("org/whole", full=True, private=True)
captioner.push_to_hub("org/bridge", revision="nightly/1")
captioner.model.push_to_hub("weights-alone", commit_message="Only the weights", tags="toy")
captioner.model.push_to_hub("whole-model", full=True)
captioner.processor.push_to_hub("org/processor-first")
captioner.model.push_to_hub("org/processor-first")

# Beside files that are no part of it, and held in two precisions.
saved = folder / "saved"
saved.mkdir()
(saved / "notes.txt").write_text("private")
half = CaptionerForConditionalGeneration.from_pretrained(checkpoint)
half.core.language_model.to(torch.bfloat16)
half.save_pretrained(saved, push_to_hub=True, repo_id="org/saved", private=True, revision="half")
half.push_to_hub("org/pushed")
half.save_pretrained(folder / "someones", push_to_hub=True)

# Trained on, what was known of the weights is no longer true.
model = captioner.model
with torch.no_grad():
    model.core.multi_modal_projector.linear_1.weight.mul_(1.5)
save_logits("second")
update = captioner.push_to_hub("org/bridge", commit_message="Train on")
pull_request = model.push_to_hub("org/bridge", create_pr=True)

readme = folder / "readme"
model.save_pretrained(readme)
(readme / "README.md").write_text("Mine.")
model.save_pretrained(readme, push_to_hub=True, repo_id="org/by-hand")
model.push_to_hub("org/by-hand")

theirs = shutil.copytree(checkpoint, folder / "theirs")
(theirs / "README.md").write_text("Theirs.")
Captioner.from_pretrained(theirs, device="cpu").push_to_hub("org/theirs")
(theirs / "model_card.json").unlink()
CaptionerForConditionalGeneration.from_pretrained(theirs).push_to_hub("org/of-unknown-weights")

upload_checkpoint, CaptionerPreTrainedModel.upload_checkpoint = CaptionerPreTrainedModel.upload_checkpoint, None
model.push_to_hub("org/without-package")  # as where nothing gave the model the package's way to upload
CaptionerPreTrainedModel.upload_checkpoint = upload_checkpoint

print(
    json.dumps(
        {
            "commits": [bridge.oid, update.oid],
            "pull_request": pull_request.pr_url,
            "errors": {
                "no token": error_of(lambda: captioner.push_to_hub("org/refused", token=False)),
                "wrong token": error_of(lambda: model.push_to_hub("org/refused", token="hf_wrong")),
                "reader": error_of(lambda: captioner.push_to_hub("org/refused", token=READER)),
                "saving": error_of(
                    lambda: model.save_pretrained(folder / "x", push_to_hub=True, repo_id="org/refused", token=READER)
                ),
                "no such checkpoint": error_of(lambda: Captioner.from_pretrained("org/nowhere")),
                "no such tower": error_of(lambda: compose("org/nowhere", "org/language")),
                "no such revision": error_of(lambda: compose("org/vision", "org/language", vision_revision="v3")),
                "bad name": error_of(lambda: captioner.push_to_hub("a/b/c")),
            },
        }
    )
)
