"""Runs over bad pictures: stopped by the first one, or as if they had never been in the data."""

import json
import logging
from pathlib import Path

import pytest
import torch
from commands import load_script
from tiny_models import picture, tiny_model, tiny_processor
from tiny_runs import COLOURS, projector, tiny_settings, write_colours

from vlm_caption.captioning.captioner import Captioner
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ImageError
from vlm_caption.data import DataError, PictureOpener
from vlm_caption.features.cache import features_key, image_features
from vlm_caption.training.train import train

SKIP = {"data.on_bad_image": "skip", "data.max_bad_share": 0.4}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """The colours of test_training, of which five are bad: two missing, two cut short, one too large."""
    write_colours(tmp_path)
    (tmp_path / "train_lime.png").unlink()
    (tmp_path / "dev_red.png").unlink()
    for name in ("train_blue.png", "dev_cyan.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    picture(0, width=200, height=200).save(tmp_path / "train_cyan.png")
    return tmp_path


@pytest.fixture
def run(folder):
    def run(output_dir: str, **changes):
        settings = tiny_settings(folder) | {"training.output_dir": str(folder / output_dir), "data.max_pixels": 2000}
        return train(RunConfig.load(None, settings | changes))

    return run


def written(folder):
    lines = (folder / "bad_images.jsonl").read_text().splitlines()
    return [(Path(entry["file"]).name, entry["reason"]) for entry in map(json.loads, lines)]


class TestTraining:
    @pytest.mark.parametrize("cache_features", [True, False])
    def test_is_as_if_bad_images_had_never_been(self, run, folder, cache_features, caplog):
        caplog.set_level(logging.INFO, "vlm_caption")
        skipped = run("skipped", **SKIP, **{"training.cache_features": cache_features})
        assert f"Left out 5 bad images: {folder / 'skipped' / 'bad_images.jsonl'}" in caplog.messages
        found = dict(written(folder / "skipped"))
        assert list(found) == ["train_lime.png", "dev_red.png", "train_blue.png", "train_cyan.png", "dev_cyan.png"]
        assert found["dev_red.png"] == "the image is missing"
        assert "cut short" in found["train_blue.png"]
        assert "the limit is 2000" in found["train_cyan.png"]
        table = folder / "captions.csv"
        table.write_text("".join(line for line in table.open() if line.split(",")[0] not in found))
        clean = run("clean", **{"training.cache_features": cache_features})
        for name, tensor in projector(clean).items():
            assert torch.equal(projector(skipped)[name], tensor), name
        facts = [
            json.loads((folder / name / "model_card.json").read_text())["training"] for name in ("skipped", "clean")
        ]
        for name in ("data", "dev_loss", "dev_loss_shuffled"):
            assert facts[0][name] == facts[1][name], name

    def test_taken_up_again_it_finds_the_same_and_repeats_nothing(self, run, folder):
        run("run", **SKIP)
        before = written(folder / "run")
        run("run", **SKIP, **{"training.max_steps": 10})  # the unreadable ones are told by the cache
        assert written(folder / "run") == before

    def test_mended_pictures_are_trained_on_and_forgotten(self, run, folder):
        run("run", **SKIP)
        write_colours(folder)
        run("run", **SKIP, **{"training.resume": False})
        assert not (folder / "run" / "bad_images.jsonl").exists()

    def test_stops_at_the_first_by_default(self, run, folder):
        with pytest.raises(DataError, match=r"1 of 8 images are missing, first: .*train_lime\.png"):
            run("run")
        write_colours(folder)
        (folder / "dev_red.png").write_text("no picture")
        with pytest.raises(ImageError, match=r"dev_red\.png: this is text"):
            run("run")
        assert not (folder / "run" / "bad_images.jsonl").exists()

    def test_too_many_stop_it_in_a_sentence(self, run, folder):
        with pytest.raises(DataError, match=r"at least 3 of 16 images are bad, more than data\.max_bad_share 0\.15"):
            run("run", **SKIP | {"data.max_bad_share": 0.15})
        assert len(written(folder / "run")) == 3
        assert not list((folder / "run").glob("checkpoint-*"))

    def test_a_split_of_bad_images_alone_is_refused(self, run, folder):
        write_colours(folder)
        for colour in COLOURS:
            (folder / f"dev_{colour}.png").write_text("no picture")
        with pytest.raises(DataError, match=r"none of the images of the split 'dev' that are read can be opened"):
            run("run", **SKIP | {"data.max_bad_share": 0.9})


class TestFeatures:
    @pytest.fixture
    def parts(self):
        model = tiny_model("dinov2")
        return model, tiny_processor(model.config)

    @pytest.fixture
    def images(self, tmp_path):
        paths = [tmp_path / f"{number}.png" for number in range(4)]
        for number, path in enumerate(paths):
            picture(number).save(path)
        paths[1].write_text("no picture")
        paths[2].unlink()
        return [str(path) for path in paths]

    def test_faults_are_told_when_computed_and_from_the_cache(self, parts, images, tmp_path):
        def compute():
            told = []
            table = image_features(
                *parts, images, tmp_path / "f", on_error=lambda row, error: told.append((row, error.reason))
            )
            return table, told

        (computed, told), (cached, told_again) = compute(), compute()
        assert [row for row, _ in told] == [1, 2]
        assert told == told_again
        assert torch.equal(computed[[0, 3]], cached[[0, 3]])
        alone = image_features(*parts, [images[0], images[3]], tmp_path / "f")
        assert torch.equal(computed[[0, 3]], alone[:])

    def test_faults_in_the_cache_stop_who_does_not_skip(self, parts, images, tmp_path):
        readable = images[:2]
        image_features(*parts, readable, tmp_path / "f", on_error=lambda row, error: None)
        with pytest.raises(ImageError, match=r"1\.png: this is text"):
            image_features(*parts, readable, tmp_path / "f")

    def test_what_can_be_opened_by_now_is_computed(self, parts, images, tmp_path, monkeypatch):
        def refuse(source, *limits):
            raise ImageError(source, "there is no plug-in")

        told = []
        with monkeypatch.context() as patch:
            patch.setattr("vlm_caption.data.bad_images.open_image", refuse)
            image_features(*parts, images[:1], tmp_path / "f", on_error=lambda row, error: told.append(row))
        assert told == [0]
        features = image_features(*parts, images[:1], tmp_path / "f", on_error=lambda row, error: told.append(row))
        assert told == [0]
        assert torch.equal(features[:], image_features(*parts, images[:1], tmp_path / "other")[:])

    def test_the_key_follows_the_limits_and_the_way_of_opening(self, parts, monkeypatch):
        def key(**limits):
            return features_key(*parts, torch.bfloat16, PictureOpener(**limits))

        before = key()
        assert len({before, key(max_pixels=1000), key(max_bytes=10_000)}) == 3
        monkeypatch.setattr("vlm_caption.features.cache.PIXELS_VERSION", 99)
        assert key() != before


class TestEvaluation:
    @pytest.fixture
    def evaluate(self, monkeypatch, folder):
        script = load_script("evaluate")
        model = tiny_model("dinov2")
        captioner = Captioner(model, tiny_processor(model.config))
        monkeypatch.setattr(Captioner, "from_pretrained", lambda checkpoint: captioner)
        model.generation_config.max_new_tokens = 4
        always = ["--checkpoint", "none", "--data.path", str(folder / "captions.csv"), "--split", "train"]
        return lambda *options: script.main([*always, "--output-dir", str(folder / "out"), *options])

    def test_leaves_bad_images_out_and_says_so(self, evaluate, folder, capsys):
        skip = ["--on-bad-image", "skip", "--max-bad-share", "0.5", "--max-pixels", "2000"]
        assert evaluate(*skip, "--json") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("5 images of ")
        assert any(line.startswith("Note: 3 bad images were left out, first: ") for line in lines)
        found = json.loads(lines[-1])
        names = [Path(entry["file"]).name for entry in found["bad_images"]]
        assert names == ["train_lime.png", "train_blue.png", "train_cyan.png"]
        captioned = {entry["image_id"] for entry in json.loads((folder / "out" / "results.json").read_text())}
        assert len(captioned) == 5
        assert not set(names) & captioned
        assert "3 bad images were left out" in (folder / "out" / "report.html").read_text()

    def test_stops_at_the_first_by_default_and_at_too_many(self, evaluate, capsys):
        assert evaluate() == 2
        assert "1 of 8 images are missing" in capsys.readouterr().err
        assert evaluate("--on-bad-image", "skip") == 2
        assert "more than data.max_bad_share 0.05 allows" in capsys.readouterr().err


class TestCaptioner:
    def test_has_the_limits_of_open_image(self, folder):
        model = tiny_model("dinov2")
        captioner = Captioner(model, tiny_processor(model.config))
        images = [folder / "train_red.png", folder / "train_cyan.png"]
        results = list(captioner.caption_each(images, max_pixels=2000, max_new_tokens=2))
        assert [isinstance(result, ImageError) for result in results] == [False, True]
        results = list(captioner.caption_each(images, max_bytes=10, max_new_tokens=2))
        assert [isinstance(result, ImageError) for result in results] == [True, True]
        with pytest.raises(ImageError, match="the limit is 2000"):
            captioner.caption(images, max_pixels=2000)
        with pytest.raises(ValueError, match="max_pixels must be at least 1"):
            captioner.caption(images, max_pixels=0)
