"""Choosing among captions by those of similar pictures: what is found, what is kept, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from commands import load_script
from datasets import Dataset
from tiny_models import picture, tiny_model, tiny_processor

from vlm_caption import Captioner
from vlm_caption.captioning import datastore as module
from vlm_caption.captioning.consensus import DocumentFrequencies
from vlm_caption.captioning.datastore import DATASTORE_NAME, Datastore, open_datastore
from vlm_caption.captioning.generation import GenerationSettings, generate
from vlm_caption.captioning.picture_vectors import collect_datastore, picture_vectors, vector_kind
from vlm_caption.core.errors import DataError
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs

pytestmark = pytest.mark.usefixtures("own_cache")

SETTINGS = {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True}
CAPTIONS = [["a dog runs", "the dog"], ["a cat sits on a mat"], ["ein Hund läuft", "a man stands", "a man"]] * 6


@pytest.fixture
def model():
    return tiny_model("dinov2", **SETTINGS)


@pytest.fixture
def rows(tmp_path):
    images = []
    for number in range(len(CAPTIONS)):
        images.append(str(tmp_path / f"{number}.png"))
        picture(number).save(images[-1])
    return Dataset.from_dict({"image": images, "captions": CAPTIONS})


@pytest.fixture
def store(model, rows):
    return collect_datastore(model, tiny_processor(model.config), rows)


def features_of(model, rows):
    images = ImageInputs(model, tiny_processor(model.config), rows["image"], cache=True)
    return images([{"index": index} for index in range(len(rows))])["image_features"]


def vectors_of(model, rows):
    return picture_vectors(model.config, features_of(model, rows))


def test_what_is_saved_is_what_is_loaded(store, tmp_path):
    loaded = Datastore.load(store.save(tmp_path / "store"))
    assert [loaded.captions_of(number) for number in range(len(loaded))] == CAPTIONS
    assert loaded.frequencies.table == DocumentFrequencies.count(CAPTIONS).table
    assert np.array_equal(loaded.vectors, store.vectors)
    assert loaded.kind == store.kind


def test_a_datastore_that_is_replaced_is_opened_anew(store, tmp_path):
    store.save(tmp_path)
    assert open_datastore(str(tmp_path)).frequencies.table == store.frequencies.table
    dataclasses.replace(store, frequencies=DocumentFrequencies.count([["another"]])).save(tmp_path)
    assert open_datastore(str(tmp_path)).frequencies.table != store.frequencies.table


@pytest.mark.parametrize("at_a_time", [3, 1000])
def test_the_most_similar_pictures_are_found(model, rows, store, monkeypatch, at_a_time):
    monkeypatch.setattr(module, "PICTURES_AT_A_TIME", at_a_time)
    kind, vectors = vector_kind(model), vectors_of(model, rows)
    found = store.find(kind, vectors, 5)
    assert found[:, 0].tolist() == list(range(len(rows)))  # a picture is most like itself
    queries = torch.nn.functional.normalize(torch.from_numpy(vectors - store.mean), dim=1)
    similarity = queries @ torch.from_numpy(store.vectors).float().T
    assert np.array_equal(found, similarity.topk(5, dim=1).indices)
    assert store.find(kind, vectors[:2], 100).shape == (2, len(rows))


def test_vectors_are_of_the_last_layer_that_was_chosen(rows):
    model = tiny_model("dinov2", **SETTINGS, vision_feature_layer=[1, 2])
    store = collect_datastore(model, tiny_processor(model.config), rows)
    assert store.mean.shape == (features_of(model, rows).shape[2] // 2,)


def test_a_caption_like_those_of_similar_pictures_is_chosen():
    frequencies = DocumentFrequencies.count(CAPTIONS)
    captions = ["a man", "a man stands", "a dog runs", ""]
    assert frequencies.rank(captions, ["the dog", "a dog runs"])[0] == 2
    assert frequencies.rank(captions, ["a man stands"])[0] == 1
    assert frequencies.rank(["", "a cat"], ["a dog runs"])[0] == 1


def test_captions_are_compared_with_those_of_similar_pictures(model, rows, store):
    model.generation_config.update(max_new_tokens=4)
    processor = tiny_processor(model.config)
    collator = CaptionCollator(processor, ImageInputs(model, processor, rows["image"], cache=True))
    arguments = (model, processor, [collator.prefix] * 2, collator.encode_images([{"index": 0}, {"index": 1}]))
    every = generate(*arguments, GenerationSettings.from_arguments({"num_beams": 6, "num_return_sequences": 6})).texts
    compared = []

    class Ranking:
        def rank(self, texts, references):
            compared.append((texts, references))
            return [2 + len(compared), 0, 1]

    settings = {"consensus": 6, "datastore": dataclasses.replace(store, frequencies=Ranking())}
    assert generate(*arguments, GenerationSettings.from_arguments(settings)).texts == [every[3], every[6 + 4]]
    references = store.references(vector_kind(model), vectors_of(model, rows)[:2])
    assert compared == [(every[:6], references[0]), (every[6:], references[1])]
    assert references[0][:2] == CAPTIONS[0]


def test_another_vision_tower_is_refused(model, store, rows):
    other = tiny_model("dinov2", **SETTINGS)
    other.config.vision_backbone = {"name": "org/tower", "revision": None, "fingerprint": "sha256:00"}
    with pytest.raises(DataError, match="made with another vision tower: make it anew with vlm-caption index"):
        store.find(vector_kind(other), vectors_of(model, rows))


def test_a_vision_tower_that_was_trained_is_another_one(store, model, rows):
    other = tiny_model("dinov2", **SETTINGS)
    assert vector_kind(other) == vector_kind(model)
    assert vector_kind(other.bfloat16()) == vector_kind(model)
    with torch.no_grad():
        other.core.vision_tower.layernorm.weight.add_(1)
    with pytest.raises(DataError, match="made with another vision tower"):
        store.find(vector_kind(other), vectors_of(other, rows))


@pytest.mark.parametrize("settings", [{"pooled_in_front": False}, {"vision_feature_layer": -2}])
def test_vectors_of_another_kind_are_refused(store, model, rows, settings):
    other = tiny_model("dinov2", **(SETTINGS | settings))
    with pytest.raises(
        DataError, match=r"vectors of another kind \(pooled \(pooler_output\) of the output\) than this captioner"
    ):
        store.find(vector_kind(other), vectors_of(other, rows))


def test_datastores_from_before_vectors_had_a_kind_can_be_read(store, model, rows):
    older = dataclasses.replace(store, kind=dataclasses.replace(store.kind, origin=""))
    found = older.find(vector_kind(model), vectors_of(model, rows), 1)
    assert found.flatten().tolist() == list(range(len(rows)))


def test_the_shipped_datastore_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Datastore.load("coco")
    assert len(shipped) > 5_000
    (tmp_path / "coco").mkdir()  # a folder of that name goes first
    with pytest.raises(DataError, match="coco: there is no"):
        Datastore.load("coco")


def test_a_folder_without_a_datastore_or_with_a_damaged_one_is_refused_in_a_sentence(store, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: there is no datastore\.safetensors"):
        Datastore.load(tmp_path / "nowhere")
    path = store.save(tmp_path / "store") / DATASTORE_NAME
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="this is not a datastore of vlm-caption index, or it is damaged"):
        Datastore.load(path.parent)
    for damaged in (
        {"picture_ends": store.picture_ends + 1},
        {"picture_ends": store.picture_ends.astype(np.float64)},
        {"caption_ends": np.concatenate([[-1], store.caption_ends[1:]])},
        {"text": store.text[:, None]},
        {"mean": store.mean[0]},
    ):
        dataclasses.replace(store, **damaged).save(path.parent)
        with pytest.raises(DataError, match="this is not a datastore"):
            Datastore.load(path.parent)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (DATASTORE_NAME, b"precious", "is no datastore, and would be lost"),
        ("document_frequencies.json", b'{"my": "notes"}', "holds something else, which would be lost"),
        ("config.json", b"{}", "holds a checkpoint"),
    ],
)
def test_the_command_replaces_no_files_of_others(tmp_path, capsys, name, content, reason):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_bytes(content)
    assert load_script("index").main(["--data.path", str(tmp_path / "nowhere.csv"), str(folder)]) == 2
    assert reason in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: content}


def test_the_command_notices_at_once_that_its_folder_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert load_script("index").main(["--data.path", str(tmp_path / "nowhere.csv"), str(tmp_path / "file")]) == 2
    assert f"there is no folder {tmp_path / 'file'} (Not a directory" in capsys.readouterr().err


def test_the_command_collects_what_captioning_uses(model, rows, tmp_path, capsys):
    model.generation_config.update(max_new_tokens=4)
    processor = tiny_processor(model.config)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    lines = [json.dumps({"file_name": path.rsplit("/", 1)[1], "text": CAPTIONS[0][0]}) for path in rows["image"]]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    options = ["--checkpoint", str(tmp_path / "checkpoint")]
    store = str(tmp_path / "store")
    index, caption = load_script("index"), load_script("caption")
    for _ in range(2):  # its own files are replaced
        assert index.main([*options, "--data.path", str(tmp_path / "metadata.jsonl"), store]) == 0
    assert capsys.readouterr().out.endswith("store: 17 images with 17 captions\n")  # and one of dev
    assert caption.main([*options, "--datastore", store, rows["image"][0]]) == 0
    [chosen] = capsys.readouterr().out.splitlines()
    captioner = Captioner.from_pretrained(tmp_path / "checkpoint", device="cpu")
    every = captioner.caption(rows["image"][0], num_return_sequences=8, num_beams=8)
    assert chosen in [written.text for written in every]
    assert caption.main([*options, "--datastore", str(tmp_path), rows["image"][0]]) == 2
    assert "there is no datastore.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        index.main([*options, store])
    assert "say what to collect" in capsys.readouterr().err
