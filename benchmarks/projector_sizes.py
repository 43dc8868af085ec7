"""How large each projector is: a Markdown table of trained parameters and image tokens for common pairs of towers.

    python benchmarks/projector_sizes.py

No weights are made: a projector's size follows from the two towers' configs alone.
"""

from typing import Any

import torch

from vlm_caption import CaptionerConfig
from vlm_caption.model.projectors import PROJECTORS, build_projector

VIT_BASE = {"model_type": "vit"}  # 768 wide, 14 × 14 patches and a class token
PAIRS = {
    "512 → 768 (the default ViT, GPT-2)": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_mediumd_patch16_reg4_gap_384",
            "num_features": 512,
            "image_size": 384,
            "patch_size": 16,
        },
        "text_config": {"model_type": "gpt2"},
    },
    "384 → 576 (DINOv2-small, SmolLM2-135M)": {
        "vision_config": {"model_type": "dinov2", "hidden_size": 384, "image_size": 224, "patch_size": 14},
        "text_config": {"model_type": "llama", "hidden_size": 576},
    },
    "768 → 3072 (ViT-B/16, Phi-3-mini)": {"vision_config": VIT_BASE, "text_config": {"model_type": "phi3"}},
}
# What each is most often given.
INPUTS = {"prefix_mlp": "pooled", "transformer": "pooled"}


def main() -> None:
    print("| projector | " + " | ".join(PAIRS) + " |")
    print("|---" * (len(PAIRS) + 1) + "|")
    for name in PROJECTORS:
        cells = []
        for towers in PAIRS.values():
            settings: dict[str, Any] = {"projector": name, "image_tokens": INPUTS.get(name, "patches"), **towers}
            config = CaptionerConfig(**settings)
            with torch.device("meta"):
                projector = build_projector(config)
            size = sum(parameter.numel() for parameter in projector.parameters())
            cells.append(f"{size:,}; {config.image_seq_length} tokens")
        print(f"| `{name}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
