"""What is fitted to the machine changes speed and not results."""

import copy

import torch
from towers import pixels, tiny_model
from transformers.activations import NewGELUActivation

from vlm_caption.hardware import choose_kernels


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
