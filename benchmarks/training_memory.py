"""Memory that training takes with a frozen language model in bfloat16, computed without a weight or a GPU.

    python benchmarks/training_memory.py                                 # the table of docs/language_models.md
    python benchmarks/training_memory.py --language org/name --images 16

The model is built on PyTorch's `meta` device, where tensors have shapes and no content, and one step's forward pass is
run there: what autograd keeps for the backward pass is what is counted. So it is, in bytes:

    2 · parameters of the language model                  frozen, in bfloat16
    + what autograd keeps                                 grows with images a step and tokens a row
    + 2 · 2 · targets · vocabulary                        logits and their gradient, in bfloat16

The vision tower (2 bytes a parameter) and the projector (16 bytes a parameter: weight, gradient and AdamW's two
moments in float32) come on top, and what kernels need for a moment.
"""

import argparse

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

GB = 1e9


def sizes(vocab: int, width: int, inner: int, layers: int, heads: int, keys: int, **others) -> dict:
    """A config's sizes in the names that Llama and its relatives have for them."""
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        **others,
    }


TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}

# As in each checkpoint's config.json; here, for the Hub is not everywhere.
CHECKPOINTS: dict[str, tuple[str, dict]] = {
    "openai-community/gpt2": ("gpt2", {}),
    "openai-community/gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "openai-community/gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "facebook/opt-125m": ("opt", {}),
    "facebook/opt-1.3b": (
        "opt",
        {
            **{"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192},
            **{"num_hidden_layers": 24, "num_attention_heads": 32},
        },
    ),
    "EleutherAI/pythia-160m": ("gpt_neox", sizes(50304, 768, 3072, 12, 12, 12, **UNTIED)),
    "EleutherAI/pythia-1.4b": ("gpt_neox", sizes(50304, 2048, 8192, 24, 16, 16, **UNTIED)),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", sizes(49152, 576, 1536, 30, 9, 3, **TIED)),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", sizes(49152, 960, 2560, 32, 15, 5, **TIED)),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", sizes(49152, 2048, 8192, 24, 32, 32, **TIED)),
    "HuggingFaceTB/SmolLM3-3B": ("smollm3", sizes(128256, 2048, 11008, 36, 16, 4, **TIED)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("llama", sizes(32000, 2048, 5632, 22, 32, 4, **UNTIED)),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", sizes(128256, 2048, 8192, 16, 32, 8, **TIED)),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", sizes(128256, 3072, 8192, 28, 24, 8, **TIED)),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", sizes(128256, 4096, 14336, 32, 32, 8, **UNTIED)),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", sizes(151936, 896, 4864, 24, 14, 2, **TIED)),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", sizes(151936, 1536, 8960, 28, 12, 2, **TIED)),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", sizes(151936, 2048, 11008, 36, 16, 2, **TIED)),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", sizes(152064, 3584, 18944, 28, 28, 4, **UNTIED)),
    "Qwen/Qwen3-0.6B": ("qwen3", sizes(151936, 1024, 3072, 28, 16, 8, head_dim=128, **TIED)),
    "Qwen/Qwen3-1.7B": ("qwen3", sizes(151936, 2048, 6144, 28, 16, 8, head_dim=128, **TIED)),
    "Qwen/Qwen3-4B-Instruct-2507": ("qwen3", sizes(151936, 2560, 9728, 36, 32, 8, head_dim=128, **TIED)),
    "Qwen/Qwen3-8B": ("qwen3", sizes(151936, 4096, 12288, 36, 32, 8, head_dim=128, **UNTIED)),
    "microsoft/phi-2": ("phi", sizes(51200, 2560, 10240, 32, 32, 32, **UNTIED)),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3", sizes(32064, 3072, 8192, 32, 32, 32, **UNTIED)),
    "microsoft/Phi-4-mini-instruct": ("phi3", sizes(200064, 3072, 8192, 32, 24, 8, **TIED)),
    "google/gemma-3-270m-it": ("gemma3_text", sizes(262144, 640, 2048, 18, 4, 1, head_dim=256, **TIED)),
    "google/gemma-3-1b-it": ("gemma3_text", sizes(262144, 1152, 6912, 26, 4, 1, head_dim=256, **TIED)),
    "google/gemma-2-2b-it": ("gemma2", sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, **TIED)),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", sizes(32768, 4096, 14336, 32, 32, 8, **UNTIED)),
    "allenai/OLMo-2-0425-1B-Instruct": ("olmo2", sizes(100352, 2048, 8192, 16, 16, 16, **UNTIED)),
    "ibm-granite/granite-3.3-2b-instruct": ("granite", sizes(49159, 2048, 8192, 40, 32, 8, **TIED)),
}


def training_memory(
    config: PreTrainedConfig, images: int, captions: int, caption_tokens: int, image_tokens: int
) -> dict[str, int]:
    """What a step takes of memory, in bytes: `weights`, `activations`, `logits`; and how many `parameters` there are.

    Args:
        config: the language model's.
        images: a step.
        captions, caption_tokens: captions an image, and tokens of each with its end token.
        image_tokens: an image's, with the start token.
    """
    config.pad_token_id = None  # some have one outside a vocabulary of another size
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False).eval()
        targets = captions * caption_tokens  # a row
        length = image_tokens + targets
        embeds = torch.empty(images, length, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.empty(images, 1, length, length, dtype=torch.bfloat16)
        position_ids = torch.empty(images, length, dtype=torch.long)
        predictors = torch.empty(images, targets, dtype=torch.long)
    weights = {parameter.untyped_storage()._cdata for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}  # by storage: a view of what is kept costs nothing

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            logits_to_keep=predictors,
            use_cache=False,
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "weights": 2 * parameters,
        "activations": sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        "logits": 2 * 2 * images * targets * config.vocab_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", help="a Hub id or a folder with a config.json; default: a list of known ones")
    parser.add_argument("--images", type=int, default=8, help="a step (8)")
    parser.add_argument("--captions", type=int, default=5, help="an image (5)")
    parser.add_argument("--caption-tokens", type=int, default=14, help="with the end token (14)")
    parser.add_argument("--image-tokens", type=int, default=18, help="with the start token (18)")
    arguments = parser.parse_args()
    if arguments.language:
        config = AutoConfig.from_pretrained(arguments.language)
        configs = {arguments.language: getattr(config, "text_config", config)}
    else:
        configs = {name: AutoConfig.for_model(family, **fields) for name, (family, fields) in CHECKPOINTS.items()}
    print("| checkpoint | family | parameters | weights, GB | activations, GB | logits, GB | together, GB |")
    print("|---|---|---|---|---|---|---|")
    for name, config in configs.items():
        found = training_memory(
            config, arguments.images, arguments.captions, arguments.caption_tokens, arguments.image_tokens
        )
        parts = [found[part] for part in ("weights", "activations", "logits")]
        cells = [f"`{name}`", config.model_type, f"{found['parameters'] / 1e6:,.0f} M"]
        print(f"| {' | '.join([*cells, *(f'{value / GB:.2f}' for value in [*parts, sum(parts)])])} |", flush=True)


if __name__ == "__main__":
    main()
