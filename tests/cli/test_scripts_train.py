"""scripts/train.py: a run from a config file, exit codes, and one sentence for what is wrong."""

import errno
import signal

import pytest
from commands import REPOSITORY, load_script
from tiny_runs import write_colours

SCRIPT = REPOSITORY / "scripts" / "train.py"


@pytest.fixture(scope="module")
def script():
    return load_script("train")


@pytest.fixture
def options(tmp_path, monkeypatch):
    """The command line of a run of configs/tiny.yaml on plain colours, two steps long."""
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    table = write_colours(tmp_path)
    config = str(REPOSITORY / "configs" / "tiny.yaml")
    return ["--config", config, "--data.path", str(table), "--output-dir", str(tmp_path / "run"), "--max-steps", "2"]


def test_trains_and_tells_how_far_it_is(script, options, tmp_path, capfd):
    assert script.main([*options, "--logging-steps", "1"]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "Data: 8 images with 8 captions to train on, 8 images to watch the loss on"
    assert any(line.startswith("step 2/2  loss ") for line in lines)
    assert lines[-1].startswith("With the images shuffled among the captions: ")
    assert not any("Writing model shards" in line or line.startswith("[transformers]") for line in lines)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--max-step", "3"], "there is no option '--max-step'; did you mean '--max-steps'?"),
        (["--batch-size", "many"], "training.batch_size must be int, and 'many' is not."),
        (["--config", "nowhere.yaml"], "nowhere.yaml: the config cannot be read (No such file or directory)."),
        (["--data.path", "nowhere"], "nowhere: there is no such file or folder"),
        (["--dev-split", "val"], "no image is in the split 'val'; splits that are there: dev, train"),
        (["--vision", "wheel:dinov2-smal"], "wheel:dinov2-small"),
        (["--image-tokens", "pooled"], "image_grid and pooled_in_front belong to image_tokens='patches'."),
        (
            ["--question-column", "ask"],
            "data.question_column is 'ask', and data.prompt asks no question: write {question} in data.prompt, or "
            "leave out data.question_column.",
        ),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence(script, options, tmp_path, capfd, changes, sentence):
    assert script.main([*options, *changes]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("train.py: ")
    assert sentence in error
    assert not (tmp_path / "run").exists()


def test_an_option_without_its_value_is_refused_without_a_page_of_usage(script, capfd):
    with pytest.raises(SystemExit) as caught:
        script.main(["--max-steps"])
    assert caught.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_an_interrupt_is_told_in_a_sentence(script, options, monkeypatch, capfd):
    def train(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_caption.training.train.train", train)
    assert script.main(options) == 130
    assert capfd.readouterr().err == "train.py: interrupted; the same command goes on from the last checkpoint\n"


def test_a_termination_is_told_by_the_exit_code(script, options, monkeypatch, capfd):
    monkeypatch.setattr("vlm_caption.training.data.open_data", lambda settings: signal.raise_signal(signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    assert script.main(options) == 143
    assert capfd.readouterr().err.startswith("train.py: interrupted")
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_full_disk_is_told_in_a_sentence(script, options, monkeypatch, capfd):
    def train(config):
        raise OSError(errno.ENOSPC, "No space left on device", "cache/features")

    monkeypatch.setattr("vlm_caption.training.train.train", train)
    assert script.main(options) == 2
    assert capfd.readouterr().err == "train.py: cache/features: No space left on device\n"


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(script, options, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert script.main([*options, "--output-dir", str(tmp_path / "file" / "run")]) == 2
    assert capfd.readouterr().err == (
        f"train.py: training.output_dir {tmp_path}/file/run cannot be used, for {tmp_path}/file is no folder: choose "
        "another.\n"
    )
