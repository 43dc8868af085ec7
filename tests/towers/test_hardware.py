"""What is fitted to the machine changes speed and not results."""

import copy

import pytest
import torch
from tiny_models import pixels, tiny_model
from transformers.activations import NewGELUActivation

from vlm_caption.towers.precision import choose_kernels, hold_frozen, multiplies_bf16_faster


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


@pytest.mark.parametrize(
    ("cpuinfo", "faster"),
    [
        pytest.param("vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 amx_bf16 amx_tile", True, id="AMX"),
        pytest.param(
            "vendor_id\t: GenuineIntel\nflags\t\t: avx512f avx512_bf16 avx512_fp16", False, id="Intel, no AMX"
        ),
        pytest.param("vendor_id\t: GenuineIntel\nflags\t\t: sse avx2", False, id="older Intel"),
        pytest.param("vendor_id\t: AuthenticAMD\nflags\t\t: avx512f avx512_bf16", True, id="AMD"),
        pytest.param("vendor_id\t: AuthenticAMD\nflags\t\t: sse avx2", False, id="older AMD"),
        pytest.param("CPU implementer\t: 0x41\nFeatures\t: fp asimd sve bf16 i8mm", True, id="Arm"),
        pytest.param("CPU implementer\t: 0x41\nFeatures\t: fp asimd", False, id="older Arm"),
        pytest.param("", False, id="no cpuinfo"),
    ],
)
def test_bf16_is_chosen_where_a_processor_multiplies_it_faster(cpuinfo, faster):
    processor = f"processor\t: 0\n{cpuinfo}\nbugs\t\t: spectre_v1 bf16\n\n"
    assert multiplies_bf16_faster(processor + processor.replace("0", "1", 1)) is faster
