"""Training by a config on vectors, and the example: scikit-learn's digits in words."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import REPOSITORY, load_script
from safetensors.torch import save_file

from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.hub.facts import read_facts
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


def settings(folder: Path) -> dict:
    """The example's, in a folder, four steps long."""
    return {
        "data.path": str(folder / "captions.jsonl"),
        "data.features": str(folder / "vectors.npy"),
        "training.output_dir": str(folder / "run"),
        "training.max_steps": 4,
        "training.batch_size": 4,
        "training.save_steps": 2,
    }


def write_tables(folder: Path, *row_shape: int) -> None:
    """Twelve rows of vectors and captions."""
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(12, *row_shape)))
    rows = [{"caption": f"a {row % 3}", "split": "train" if row < 8 else "dev"} for row in range(12)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load_config(folder: Path, **changes) -> RunConfig:
    return RunConfig.load(REPOSITORY / "configs" / "digits.yaml", settings(folder) | changes)


@pytest.mark.parametrize("row_shape", [(6,), (4, 6)])
def test_a_config_trains_on_vectors_of_any_shape(tmp_path, row_shape):
    write_tables(tmp_path, *row_shape)
    model = train(load_config(tmp_path))
    assert (model.config.feature_tokens, model.config.feature_size) == ((1, *row_shape)[-2], 6)
    training = read_facts(tmp_path / "run")["training"]
    assert set(training["precision"]) == {"multi_modal_projector", "language_model"}
    assert training["samples"][0]["image"] == "8"
    assert "vision tower" not in (tmp_path / "run" / "README.md").read_text()


def test_a_run_goes_on_from_its_checkpoint_and_not_with_other_vectors(tmp_path):
    write_tables(tmp_path, 6)
    whole = train(load_config(tmp_path, **{"training.output_dir": str(tmp_path / "whole")}))
    train(load_config(tmp_path))
    for folder in (tmp_path / "run").glob("checkpoint-4"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = train(load_config(tmp_path))
    for name, parameter in whole.named_parameters():
        assert parameter.equal(again.get_parameter(name)), name
    (tmp_path / "other.npy").write_bytes((tmp_path / "vectors.npy").read_bytes())
    with pytest.raises(ConfigError, match=r"data\.features: .*other\.npy"):
        train(load_config(tmp_path, **{"data.features": str(tmp_path / "other.npy")}))


def test_a_number_that_is_not_finite_ends_the_run_before_it_begins(tmp_path):
    write_tables(tmp_path, 6)
    vectors = np.load(tmp_path / "vectors.npy")
    vectors[5, 2] = np.nan
    np.save(tmp_path / "vectors.npy", vectors)
    with pytest.raises(ValueError, match=r"vectors\.npy, row 5: a number is not finite"):
        train(load_config(tmp_path))


SHORT_GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 12}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training.learning_rate": 1e38}, r"The (loss|gradient) is (nan|inf) in step \d, on C/C=C/\d, C/C=C/"),
        ({"model.language": SHORT_GPT2}, r"^C/C=C/\d: the image, the prompt and one of its captions are 23 tokens"),
    ],
    ids=["loss", "positions"],
)
def test_vectors_are_called_by_their_whole_names(tmp_path, changes, sentence):
    vectors = torch.randn(12, 6)
    save_file({f"C/C=C/{row}": vectors[row].clone() for row in range(12)}, tmp_path / "vectors.safetensors")
    rows = [{"id": f"C/C=C/{row}", "caption": "a" * 20, "split": "train" if row < 8 else "dev"} for row in range(12)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises((FloatingPointError, ValueError), match=sentence):
        train(load_config(tmp_path, **{"data.features": str(tmp_path / "vectors.safetensors")} | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.vision": {"model_type": "vit"}},
            "data.features gives vectors, which no vision tower makes: set model",
        ),
        ({"data.features": None}, "model.vision is none: name the file of vectors to caption in data.features"),
        ({"model.image_tokens": "patches"}, "image_tokens, image_grid, .* choose among a vision tower's tokens"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, sentence):
    write_tables(tmp_path, 6)
    with pytest.raises(ConfigError, match=sentence):
        train(load_config(tmp_path, **changes))


def test_the_scripts_train_from_the_config_alone_and_have_nothing_to_cache(tmp_path, monkeypatch, capfd):
    write_tables(tmp_path, 6)
    config = yaml.safe_load((REPOSITORY / "configs" / "digits.yaml").read_text())
    for name, value in settings(tmp_path).items():
        section, _, field = name.partition(".")
        config[section][field] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    assert load_script("train").main(["--config", "config.yaml"]) == 0
    assert "8 images with 8 captions to train on" in capfd.readouterr().err
    assert load_script("cache_features").main(["--config", "config.yaml"]) == 2
    assert "The config has no vision tower, so there is nothing to compute" in capfd.readouterr().err


def test_a_captioner_of_vectors_is_evaluated_and_its_data_not_taken_for_pictures(tmp_path, capfd):
    write_tables(tmp_path, 6)
    train(load_config(tmp_path))
    data = ["--data.path", str(tmp_path / "captions.jsonl"), "--data.features", str(tmp_path / "vectors.npy")]
    command = ["--checkpoint", str(tmp_path / "run"), "--output-dir", str(tmp_path / "scores"), "--json"]
    evaluate = load_script("evaluate")
    assert evaluate.main([*command, *data]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["shuffled_loss"] > 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {"8", "9", "10", "11"}
    np.save(tmp_path / "vectors.npy", np.zeros((12, 5)))
    assert evaluate.main([*command, *data]) == 2
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(SystemExit):
        load_script("inspect_data").main(data)
    assert "data.features: this looks at pictures" in capfd.readouterr().err


def test_held_out_digits_are_captioned_far_better_than_by_chance(tmp_path, capsys):
    """A short version of the example."""
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_example", REPOSITORY / "examples" / "digits.py")
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    vectors, captions = tmp_path / "vectors.npy", tmp_path / "captions.jsonl"
    digits.write_tables(vectors, captions)
    # Of each caption the last letter: 7 is learnt sooner than "a handwritten 7".
    rows = [json.loads(line) for line in captions.read_text().splitlines()]
    captions.write_text("".join(json.dumps(row | {"caption": row["caption"][1][-1]}) + "\n" for row in rows))
    short = {"max_steps": 120, "batch_size": 32, "samples": 0, "save_steps": 120, "warmup_steps": 10}
    train(load_config(tmp_path, **{f"training.{name}": value for name, value in short.items()}))
    assert digits.caption_held_out(str(tmp_path / "run"), vectors, captions) > 0.5
    assert "of 397 held-out digits have a right caption" in capsys.readouterr().out
