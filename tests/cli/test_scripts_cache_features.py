"""scripts/cache_features.py: what train.py then finds, and one sentence for what is wrong."""

import errno
import signal

import pytest
from commands import REPOSITORY, load_script
from tiny_models import save_vision_tower
from tiny_runs import write_colours

from vlm_caption.config.run_config import RunConfig
from vlm_caption.features import cache as features
from vlm_caption.training.train import train

CONFIG = REPOSITORY / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def script():
    return load_script("cache_features")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def settings(tmp_path):
    """Of a tower from a folder: a random one is another one in every run."""
    return {"data.path": str(write_colours(tmp_path)), "model.vision": save_vision_tower(tmp_path / "tower", "dinov2")}


def test_caches_what_training_then_finds(script, settings, cache, tmp_path, capfd, monkeypatch):
    options = [option for name, value in settings.items() for option in (f"--{name}", value)]
    assert script.main(["--config", str(CONFIG), *options]) == 0
    output = capfd.readouterr()
    assert output.out == "cached: train 8, dev 8 images\n"
    assert "train: 8 images" in output.err
    shards = sorted(cache.glob("*/*.safetensors"))

    def compute(*args):
        raise AssertionError("the features are not found")

    monkeypatch.setattr(features, "_compute", compute)
    train(RunConfig.load(CONFIG, settings | {"training.output_dir": str(tmp_path / "run"), "training.max_steps": 1}))
    assert sorted(cache.glob("*/*.safetensors")) == shards


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data.path", "nowhere"], "nowhere: there is no such file or folder"),
        (["--dev-split", "val"], "no image is in the split 'val'; splits that are there: dev, train"),
        (["--train-vision", "full"], "Training would not read the features: the vision tower is trained"),
        (["--cache-features", "false"], "Training would not read the features"),
        (["--image-tokens", "pooled"], "image_grid and pooled_in_front belong to image_tokens='patches'."),
        (
            ["--question-column", "ask"],
            "data.question_column is 'ask', and data.prompt asks no question: write {question} in data.prompt, or "
            "leave out data.question_column.",
        ),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence(script, settings, cache, capfd, options, sentence):
    arguments = ["--config", str(CONFIG), "--data.path", settings["data.path"], *options]
    assert script.main(arguments) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("cache_features.py: ")
    assert sentence in error
    assert not list(cache.glob("*/*.safetensors"))


def test_the_images_to_replay_are_cached_too(script, settings, tmp_path_factory, capfd):
    other = write_colours(tmp_path_factory.mktemp("other"))
    options = [option for name, value in settings.items() for option in (f"--{name}", value)]
    arguments = ["--config", str(CONFIG), *options, "--data.replay", str(other)]
    assert script.main(arguments) == 0
    assert capfd.readouterr().out.endswith("replay 8 images\n")


def test_a_picture_that_is_none_is_named(script, settings, tmp_path, capfd):
    (tmp_path / "train_blue.png").write_text("blue")
    assert script.main(["--config", str(CONFIG), "--data.path", settings["data.path"]]) == 2
    assert "train_blue.png: this is text" in capfd.readouterr().err.splitlines()[-1]


def test_a_termination_is_told_by_the_exit_code(script, settings, capfd, monkeypatch):
    def terminate(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("vlm_caption.training.feature_caching.image_features", terminate)
    assert script.main(["--config", str(CONFIG), "--data.path", settings["data.path"]]) == 143
    assert capfd.readouterr().err.endswith("cache_features.py: interrupted; the same command goes on from here\n")


def test_a_full_disk_is_told_in_a_sentence(script, settings, capfd, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "cache/corpora")

    monkeypatch.setattr("vlm_caption.training.feature_caching.image_features", fail)
    assert script.main(["--config", str(CONFIG), "--data.path", settings["data.path"]]) == 2
    assert capfd.readouterr().err.endswith("cache_features.py: cache/corpora: No space left on device\n")


def test_bad_pictures_are_left_out_where_that_is_asked_for(script, settings, tmp_path, capfd):
    bad = next(tmp_path.rglob("train_*.png"))
    bad.write_text("no picture")
    options = [option for name, value in settings.items() for option in (f"--{name}", value)]
    assert script.main(["--config", str(CONFIG), *options, "--on-bad-image", "skip"]) == 2
    assert "more than data.max_bad_share 0.05 allows" in capfd.readouterr().err
    assert script.main(["--config", str(CONFIG), *options, "--on-bad-image", "skip", "--max-bad-share", "0.5"]) == 0
