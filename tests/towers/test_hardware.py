"""What is fitted to the machine changes speed and not results."""

import copy

import torch
from tiny_models import pixels, tiny_model
from transformers.activations import NewGELUActivation

from vlm_caption.towers.precision import choose_kernels, hold_frozen


def test_chosen_kernels_compute_what_the_library_computes():
    model = tiny_model()
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    chosen = copy.deepcopy(model)
    choose_kernels(chosen, compiled=False)
    assert not any(isinstance(module, NewGELUActivation) for module in chosen.modules())
    inputs = {"input_ids": model.core.image_prompt(2), "pixel_values": pixels(2)}
    inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 3), value=5)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] != 5, -100)
    gradients = []
    for each in (model, chosen):
        each(**inputs, labels=labels).loss.backward()
        gradients.append([p.grad for p in each.core.multi_modal_projector.parameters()])
    torch.testing.assert_close(*gradients)


def test_frozen_weights_are_rounded_and_rotary_frequencies_are_not():
    model = tiny_model(language="llama")
    hold_frozen(model, "bf16")
    assert model.core.language_model.dtype == torch.bfloat16
    assert model.core.vision_tower.dtype == torch.bfloat16
    frequencies = [tensor for name, tensor in model.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert all(tensor.dtype == torch.float32 for tensor in frequencies)
    assert model.core.multi_modal_projector.linear_1.weight.dtype == torch.float32
