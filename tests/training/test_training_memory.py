"""benchmarks/training_memory.py: the memory of a training step, computed on the meta device."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

_PATH = Path(__file__).parents[2] / "benchmarks" / "training_memory.py"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_memory", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(family: str = "llama"):
    return AutoConfig.for_model(family, vocab_size=100, num_key_value_heads=2, **SIZES)


def test_what_is_counted_is_what_a_real_step_keeps(benchmark):
    found = benchmark.training_memory(config(), images=2, captions=3, caption_tokens=4, image_tokens=5)
    model = AutoModelForCausalLM.from_config(config(), dtype=torch.bfloat16, attn_implementation="sdpa")
    model.requires_grad_(False).eval()
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.zeros(2, 1, 17, 17, dtype=torch.bfloat16)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            inputs_embeds=torch.zeros(2, 17, 32, dtype=torch.bfloat16, requires_grad=True),
            attention_mask=mask,
            position_ids=torch.arange(17).expand(2, 17),
            logits_to_keep=torch.arange(12).expand(2, 12),
            use_cache=False,
        )
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert real <= found["activations"] <= 1.3 * real  # fused attention keeps less than plain; here it is a large part
    assert found["logits"] == 2 * 2 * 2 * 12 * 100


def test_images_a_step_cost_activations_and_no_weights(benchmark):
    few, many = (benchmark.training_memory(config("qwen2"), images, 5, 14, 18) for images in (4, 8))
    assert few["weights"] == many["weights"] == 2 * few["parameters"]
    assert many["activations"] == pytest.approx(2 * few["activations"], rel=0.02)
