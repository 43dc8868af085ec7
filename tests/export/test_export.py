"""Exported captioners: the same captions as the checkpoint's, without torch."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import REPOSITORY, load_script
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import EOS, made_up_confidence, picture, tiny_model, tiny_processor
from transformers.pytorch_utils import Conv1D

from vlm_caption import Captioner
from vlm_caption.captioning.consensus import DocumentFrequencies
from vlm_caption.captioning.picture_vectors import collect_datastore
from vlm_caption.core.errors import CheckpointError, ConfigError

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

from vlm_caption import runtime  # noqa: E402
from vlm_caption.export import export_onnx  # noqa: E402
from vlm_caption.export.blocks import BLOCK, PackedWeights, pack_blocks, unpack_blocks  # noqa: E402
from vlm_caption.export.builder import GraphBuilder, quantize_columns  # noqa: E402
from vlm_caption.export.language import build_language_graph  # noqa: E402
from vlm_caption.export.settings import decoding_settings  # noqa: E402
from vlm_caption.export.smoothing import greatest_inputs  # noqa: E402
from vlm_caption.export.vision import check_vision_tower  # noqa: E402

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript, of the extra onnx"),
]

SYSTEMS = {
    "dinov2, llama": {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True},
    "clip, gpt2": {"image_start": "learned", "layer_prefix_rank": 3},
    "siglip, llama": {"image_tokens": "patches", "vision_feature_layer": [-1, -2], "layer_prefix_rank": 2},
    "vit_cls, gpt2": {},
}


def save(folder, name, **settings):
    vision, language = name.split(", ")
    model = tiny_model(vision, language, **(SYSTEMS[name] | settings))
    model.generation_config.update(max_new_tokens=10, num_beams=2, do_sample=False, eos_token_id=[EOS, 40, 41, 42])
    model.save_pretrained(folder, full=True)
    tiny_processor(model.config).save_pretrained(folder)
    made_up_confidence(model).save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module", params=SYSTEMS)
def both(request, folder):
    """A captioner, and the same exported."""
    checkpoint = save(folder / request.param, request.param)
    exported = export_onnx(checkpoint, folder / f"{request.param} exported")
    return Captioner.from_pretrained(checkpoint, device="cpu"), runtime.Captioner.from_pretrained(exported, threads=1)


PICTURES = [picture(seed, width, height) for seed, (width, height) in enumerate([(40, 30), (33, 70), (32, 32)])]

FREQUENCIES = DocumentFrequencies.count([["a b"], ["c d"], ["e"], ["f g h"]] * 5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 3, "num_return_sequences": 2, "batch_size": 2},
        {"prompt": "A photo of", "stop": ["a", "7"], "max_words": 3},
        {"ban": ["e", "o"], "min_new_tokens": 4},
        {"examples": [(PICTURES[2], "a cat")]},
        {"prompt": "{question}", "question": ["a?", "what is that?", "b"]},
        {"prompt": ["", "A photo of", "See: {question}"], "question": [["a?", "what is that?"], ["b"], ["c"]]},
        {"prompt": ["", "A photo of"], "examples": [(PICTURES[2], "a cat")], "num_return_sequences": 2},
        {"consensus": 3, "prompt": ["", "A photo of"], "document_frequencies": FREQUENCIES},
        {"consensus": 4, "num_return_sequences": 3, "document_frequencies": FREQUENCIES},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_an_export_writes_the_captions_of_its_checkpoint(both, settings):
    theirs, ours = (captioner.caption(PICTURES, **settings) for captioner in both)
    assert [caption.text for caption in ours] == [caption.text for caption in theirs]
    assert [caption.finished for caption in ours] == [caption.finished for caption in theirs]
    assert [caption.score for caption in ours] == pytest.approx([caption.score for caption in theirs], abs=1e-3)
    confidences = [caption.confidence for caption in theirs]
    assert all(0 < value < 1 for value in confidences)
    assert [caption.confidence for caption in ours] == pytest.approx(confidences, abs=1e-3)
    assert [caption.image for caption in ours] == [caption.image for caption in theirs]
    assert [caption.prompt for caption in ours] == [caption.prompt for caption in theirs]


def test_an_export_chooses_by_a_datastore_as_its_checkpoint_does(both, tmp_path):
    theirs, _ = both
    rows = Dataset.from_dict({"image": [str(tmp_path / f"{number}.png") for number in range(3)]})
    for path, image in zip(rows["image"], PICTURES, strict=True):
        image.save(path)
    captions = theirs.caption(PICTURES, num_return_sequences=8, num_beams=8)
    likes = [[captions[8 * number + number + 2].text or "a"] for number in range(3)]
    store = collect_datastore(theirs.model, theirs.processor, rows.add_column("captions", likes))
    store.save(tmp_path / "store")
    chosen = [captioner.caption(PICTURES, datastore=tmp_path / "store") for captioner in both]
    assert [caption.text for caption in chosen[1]] == [caption.text for caption in chosen[0]]
    assert all(caption.text in [each.text for each in captions] for caption in chosen[1])


def test_exports_of_other_formats_are_refused(quantized, tmp_path):
    shutil.copytree(quantized, tmp_path / "old")
    settings = json.loads((quantized / "captioner.json").read_text())
    (tmp_path / "old" / "captioner.json").write_text(json.dumps(settings | {"format": 3}))
    with pytest.raises(CheckpointError, match="has the format 3, and this version reads 7 and 8: export it again"):
        runtime.Captioner.from_pretrained(tmp_path / "old")


@pytest.mark.parametrize("both", ["clip, gpt2"], indirect=True)
def test_an_export_has_room_for_as_many_tokens_as_its_checkpoint(both):
    theirs, ours = both
    example = (PICTURES[2], "a cat")
    for examples in ([], [example], [example] * 2):
        # The longest captions that fit, and one token more.
        length = len(ours._prompts.encode(None, "", [(None, "a cat")] * len(examples)))
        room = theirs.model.config.text_positions(len(examples) + 1) - length
        assert len(ours.caption(PICTURES[0], examples=examples, max_new_tokens=room)) == 1
        for captioner in both:
            with pytest.raises(ValueError, match="exceed the"):
                captioner.caption(PICTURES[0], examples=examples, max_new_tokens=room + 1)


def test_a_picture_is_encoded_once_for_all_prompts(both, monkeypatch):
    _, ours = both
    seen = []
    run = ours._vision.run
    monkeypatch.setattr(ours._vision, "run", lambda pixels: (seen.append(len(pixels)), run(pixels))[1])
    assert len(ours.caption(PICTURES, prompt=["", "A", "B"])) == 9
    assert seen == [len(PICTURES)]


def test_a_consensus_needs_frequencies_and_takes_those_of_the_folder(quantized, tmp_path):
    shutil.copytree(quantized, tmp_path / "copy")
    ours = runtime.Captioner.from_pretrained(tmp_path / "copy", threads=1)
    with pytest.raises(ConfigError, match="document_frequencies"):
        ours.caption(PICTURES[0], consensus=2)
    with pytest.raises(ValueError, match="consensus 2 writes too few captions to keep 3 of them"):
        ours.caption(PICTURES[0], consensus=2, num_return_sequences=3)
    FREQUENCIES.save(tmp_path / "copy")
    assert len(ours.caption(PICTURES[0], consensus=2)) == 1


def test_confidences_of_other_weights_are_not_exported(folder, caplog):
    checkpoint = save(folder / "other weights", "clip, gpt2")
    made_up_confidence(Captioner.from_pretrained(checkpoint).model, weights="sha256:another").save(checkpoint)
    exported = export_onnx(checkpoint, folder / "without confidences", quantize="int8")
    assert "are of other weights" in caplog.text
    ours = runtime.Captioner.from_pretrained(exported, threads=1)
    assert [caption.confidence for caption in ours.caption(PICTURES)] == [None] * 3


def test_captions_that_are_cut_at_once_have_the_confidences_of_their_checkpoint(both):
    for image in PICTURES:
        [caption] = both[0].caption(image)
        theirs, ours = (captioner.caption(image, stop=caption.text[0]) for captioner in both)
        assert [caption.text for caption in ours] == [caption.text for caption in theirs]
        assert ours[0].confidence == pytest.approx(theirs[0].confidence, abs=1e-3)


def test_confidences_of_another_model_are_refused(quantized, tmp_path):
    shutil.copytree(quantized, tmp_path / "copy")
    content = json.loads((quantized / "confidence.json").read_text())
    content["pictures"] = {"mean": [0.0], "deviation": [1.0]}
    (tmp_path / "copy" / "confidence.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="it is for 1 features of a picture, and the model has"):
        runtime.Captioner.from_pretrained(tmp_path / "copy")


def test_confidences_can_be_switched_off(both):
    _, ours = both
    confidence, ours.confidence = ours.confidence, None
    assert ours.caption(PICTURES[0])[0].confidence is None
    ours.confidence = confidence


def test_an_export_is_named_like_its_checkpoint(both):
    theirs, ours = both
    assert ours.checkpoint == theirs.checkpoint


def test_a_picture_that_cannot_be_opened_costs_its_own_caption(both):
    _, ours = both
    first, error, last = ours.caption_each([PICTURES[0], b"no picture", PICTURES[1]])
    assert (first.text, last.text) == tuple(caption.text for caption in ours.caption(PICTURES[:2]))
    assert "picture" in str(error)


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request, folder):
    checkpoint = save(folder / f"to quantize to {request.param}", "clip, gpt2")
    return export_onnx(checkpoint, folder / request.param, quantize=request.param)


def test_the_folder_says_what_it_holds(quantized):
    sums = dict(reversed(line.split("  ")) for line in (quantized / "SHA256SUMS").read_text().splitlines())
    assert {"vision.onnx", "language.onnx", "tokenizer.json", "captioner.json", "README.md"} < sums.keys()
    assert sums.keys() == {path.name for path in quantized.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((quantized / name).read_bytes()).hexdigest() == digest
    assert (quantized / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    card = (quantized / "README.md").read_text()
    assert quantized.name in card
    assert "| language model | GPT2LMHeadModel" in card or "GPT2LMHeadModel" in card
    assert json.loads((quantized / "captioner.json").read_text())["checkpoint"].endswith(f"-{quantized.name}")


def test_a_quantized_export_writes_captions(quantized):
    captions = runtime.Captioner.from_pretrained(quantized, threads=1).caption(PICTURES)
    assert len(captions) == 3
    assert all(caption.score < 0 for caption in captions)


def test_torch_is_not_imported_to_caption(quantized, tmp_path):
    PICTURES[0].save(tmp_path / "1.png")
    code = (
        "import sys\n"
        "from vlm_caption.cli.main import main\n"
        f"code = main(['caption', '--checkpoint', {str(quantized)!r}, {str(tmp_path / '1.png')!r}])\n"
        "found = [n for n in ('torch', 'transformers', 'datasets', 'pyarrow', 'onnx') if n in sys.modules]\n"
        "print(code, found)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "0 []", process.stderr


def test_the_command_refuses_what_an_export_has_not(quantized, tmp_path, capsys):
    PICTURES[0].save(tmp_path / "1.png")
    np.save(tmp_path / "vectors.npy", np.ones((1, 4), np.float32))
    for options, message in (
        (["--device", "cpu", tmp_path / "1.png"], "--device"),
        (["--consensus", "2", tmp_path / "1.png"], "There is no document_frequencies.json beside the checkpoint"),
        (["--features", tmp_path / "vectors.npy"], "--features"),
    ):
        assert load_script("caption").main(["--checkpoint", str(quantized), *map(str, options)]) == 2
        assert message in capsys.readouterr().err


def test_the_command_routes_captions_by_their_confidence(quantized, tmp_path, capsys):
    for number, image in enumerate(PICTURES):
        image.save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(3)]
    command, review = ["--checkpoint", str(quantized), "--format", "json"], str(tmp_path / "review.jsonl")
    assert load_script("caption").main([*command, *pictures]) == 0
    confidences = sorted(json.loads(line)["confidence"] for line in capsys.readouterr().out.splitlines())
    least = str(sum(confidences[:2]) / 2)
    assert load_script("caption").main([*command, "--min-confidence", least, "--review", review, *pictures]) == 0
    kept = [json.loads(line)["confidence"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(kept) == confidences[1:]
    (quantized / "confidence.json").rename(tmp_path / "confidence.json")
    try:
        assert load_script("caption").main([*command, "--min-confidence", "0.5", "--review", review, *pictures]) == 2
    finally:
        (tmp_path / "confidence.json").rename(quantized / "confidence.json")
    assert "has no confidence.json" in capsys.readouterr().err


def test_the_command_captions_with_several_prompts(quantized, tmp_path, capsys):
    PICTURES[0].save(tmp_path / "1.png")
    arguments = ["--checkpoint", quantized, "--prompt", "A photo of", "--prompt", "See", "--format", "json"]
    assert load_script("caption").main([*map(str, arguments), str(tmp_path / "1.png")]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["prompt"] for entry in entries] == ["A photo of", "See"]


def test_an_export_writes_as_many_captions_of_an_image_as_its_checkpoint(folder):
    save(folder / "several", "clip, gpt2")
    captioner = Captioner.from_pretrained(folder / "several", device="cpu")
    captioner.model.generation_config.update(num_beams=3, num_return_sequences=3)
    assert decoding_settings(captioner)["num_beams"] == 3
    assert "num_return_sequences" not in decoding_settings(captioner)


def test_an_existing_folder_is_kept(folder):
    (folder / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        export_onnx(folder / "no checkpoint", folder / "mine")


def test_a_damaged_export_is_refused_in_a_sentence(quantized, tmp_path):
    for name in {"captioner.json", "vision.onnx", "blocks.onnx"} & {path.name for path in quantized.iterdir()}:
        broken = tmp_path / name
        broken.mkdir()
        for path in quantized.iterdir():
            (broken / path.name).write_bytes(b"{" if path.name == name else path.read_bytes())
        with pytest.raises(CheckpointError, match=name):
            runtime.Captioner.from_pretrained(broken)


@pytest.mark.parametrize(("vision", "language", "message"), [("clip", "qwen2", "qwen2"), ("resnet", "gpt2", "resnet")])
def test_other_families_are_refused_by_name(vision, language, message):
    core = tiny_model(vision, language, image_tokens="pooled").core
    refuse = check_vision_tower if vision == message else lambda core: build_language_graph(core, int8=False)
    with pytest.raises(ConfigError, match=f"A {message} .* cannot be exported"):
        refuse(core)


def product_of(weight, rows, greatest=None):
    """Returns what an int8 linear layer makes of rows."""
    import onnxruntime
    from onnx import TensorProto

    from vlm_caption.export.builder import value

    builder = GraphBuilder(int8=True)
    builder.add("Identity", builder.linear("x", "layer", weight, greatest=greatest), name="y")
    sizes = weight.shape
    model = builder.model(
        [value("x", TensorProto.FLOAT, ["M", sizes[0]])], [value("y", TensorProto.FLOAT, ["M", sizes[1]])]
    )
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": rows})[0]


def test_quantized_products_depend_on_their_own_row_alone():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 48)).astype(np.float32)
    rows = rng.normal(size=(3, 32)).astype(np.float32)
    rows[1] *= 1000
    rows[2] = 0
    together = product_of(weight, rows)
    for row, product in zip(rows, together, strict=True):
        assert np.array_equal(product_of(weight, row[None])[0], product)
    exact = rows @ weight
    assert np.abs(together - exact)[0].max() < 0.03 * np.abs(exact[0]).max()
    assert not together[2].any()


def test_weights_are_rounded_to_the_nearest_multiple_of_their_columns_scale():
    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).numpy()
    weight[:, 3] = 0
    integers, scales = quantize_columns(weight)
    errors = np.abs(integers.astype(np.float32) * scales - weight).max(axis=0)
    assert (errors <= scales * 0.5001).all()
    assert integers.dtype == np.int8
    assert not integers[:, 3].any()


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-4, 4, width=32)))
def test_products_of_two_neighbouring_weights_and_any_activations_fit_into_16_bits(weight):
    integers = quantize_columns(weight)[0].astype(int)
    pairs = np.pad(integers, ((0, len(integers) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    assert 255 * np.abs(pairs.sum(axis=1)).max() < 2**15
    assert np.abs(integers).max() <= 127


def test_the_greatest_products_do_not_overflow():
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((64, 48)) < 0.5, 1, -0.9).astype(np.float32)
    rows = np.where(rng.random((5, 64)) < 0.5, 1, -1).astype(np.float32)  # rounded to 255 and to 1
    multiples, scales = quantize_columns(weight)
    expected = rows @ (multiples * scales)
    for count in (1, 5):  # onnxruntime has a kernel for a single row
        assert np.allclose(product_of(weight, rows[:count]), expected[:count], rtol=1e-5, atol=1e-4)


def test_smoothing_keeps_the_small_channels_beside_an_outlier():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 16)).astype(np.float32)
    rows = rng.normal(size=(40, 32)).astype(np.float32)
    rows[:, 5] *= 300
    exact = rows @ weight
    errors = [
        np.abs(product_of(weight, rows, greatest) - exact).mean() for greatest in (None, np.abs(rows).max(axis=0))
    ]
    assert errors[1] < 0.3 * errors[0]


def input_size(layer):
    return layer.in_features if isinstance(layer, torch.nn.Linear) else len(layer.weight)


def test_smoothing_measures_all_linear_layers_and_the_head(folder):
    captioner = Captioner.from_pretrained(save(folder / "to measure", "clip, gpt2"), device="cpu")
    greatest = greatest_inputs(captioner)
    model = captioner.model.core.language_model
    layers = [block.attn.c_attn for block in model.transformer.h] + [block.mlp.c_proj for block in model.transformer.h]
    for layer in [*layers, model.get_output_embeddings()]:
        assert greatest[layer].shape == (input_size(layer),)
        assert (greatest[layer] > 0).all()


def test_an_older_runtime_refuses_blocks(quantized):
    assert json.loads((quantized / "captioner.json").read_text())["format"] == {"int8": 7, "int4": 8}[quantized.name]


@pytest.mark.parametrize("language", ["llama", "gpt2"])
def test_weights_of_4_bits_are_those_of_int8_where_the_model_has_blocks(language):
    import onnxruntime
    from onnx import numpy_helper

    core = tiny_model("clip", language).core
    for name, weight in core.language_model.named_parameters():
        if weight.ndim == 2 and not name.endswith(("wte.weight", "wpe.weight", "head.weight", "tokens.weight")):
            columns = weight.data if language == "gpt2" else weight.data.T  # [K, N]
            if len(columns) % BLOCK == 0:
                columns.copy_(torch.from_numpy(unpack_blocks(*pack_blocks(columns.numpy()))))
    layers = [layer for layer in core.language_model.modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
    rng = np.random.default_rng(0)
    greatest = {layer: rng.uniform(0, 9, input_size(layer)) for layer in layers}
    packed = PackedWeights()
    graph = build_language_graph(core, True, packed, greatest).graph
    plain = build_language_graph(core, True, greatest=greatest).graph
    session = onnxruntime.InferenceSession(packed.model().SerializeToString())
    unpacked = {output.name: array for output, array in zip(session.get_outputs(), session.run(None, {}), strict=True)}
    for got, expected in zip(graph.initializer, plain.initializer, strict=True):
        assert (got.name, got.data_type, got.dims) == (expected.name, expected.data_type, expected.dims)
        array = unpacked.pop(got.name) if got.name in unpacked else numpy_helper.to_array(got)
        assert np.array_equal(array, numpy_helper.to_array(expected)), got.name
    assert not unpacked
    assert packed.size > 0


def test_weights_between_the_values_of_a_block_go_to_the_nearest():
    weight = np.random.default_rng(0).normal(size=(2 * BLOCK, 3)).astype(np.float32)
    weight[:BLOCK, 1] = 0.25
    codes, steps, lows = pack_blocks(weight)
    errors = np.abs(unpack_blocks(codes, steps, lows) - weight).reshape(2, BLOCK, 3)
    assert (errors <= 0.5 * steps + 0.01).all()
    assert not errors[0, :, 1].any()
