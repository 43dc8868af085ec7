"""Scores of a captioner: the losses, the captions, BLEU and CIDEr, and the command that writes them down."""

import json
import logging

import pytest
from commands import load_script
from test_training import write_colours
from towers import tiny_model, tiny_processor

from vlm_caption import evaluation
from vlm_caption.captioner import Caption, Captioner
from vlm_caption.data import load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.evaluation import evaluate
from vlm_caption.image_inputs import ImageInputs, with_index
from vlm_caption.metrics import Scores
from vlm_caption.nll import caption_nll


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path):
    write_colours(tmp_path)
    return load_captions(tmp_path / "captions.csv", "dev", limit=3)


@pytest.fixture
def captioner():
    model = tiny_model("dinov2")
    return Captioner(model, tiny_processor(model.config))


@pytest.fixture
def no_scorer(monkeypatch):
    monkeypatch.setattr("vlm_caption.metrics.scoring.importlib.util.find_spec", lambda name: None)


class TestEvaluate:
    def test_gives_both_losses_and_a_caption_for_every_image(self, captioner, dataset, no_scorer):
        result = evaluate(captioner, dataset, batch_size=2, max_new_tokens=4)
        model, processor, rows = captioner.model, captioner.processor, with_index(dataset)
        collator = CaptionCollator(processor, ImageInputs(model, processor, rows["image"], cache=True))
        assert result.loss == pytest.approx(caption_nll(model, rows, collator, 3), rel=1e-5)
        shuffled = caption_nll(model, rows, collator, 3, shuffle_images=True)
        assert result.shuffled_loss == pytest.approx(shuffled, rel=1e-5)
        assert result.loss != result.shuffled_loss
        expected = captioner.caption(list(dataset["image"]), max_new_tokens=4)
        assert result.captions == [caption.text for caption in expected]

    def test_says_why_there_are_no_metrics(self, captioner, dataset, no_scorer):
        result = evaluate(captioner, dataset, max_new_tokens=2)
        assert result.metrics == {}
        assert result.reason == "bleu needs pycocoevalcap: pip install 'vlm-caption[metrics]'"

    def test_hands_captions_and_references_to_the_scorer(self, captioner, dataset, monkeypatch):
        seen = {}

        def fake_score(captions, references, metrics):
            seen.update(zip(captions, references, strict=True))
            return Scores({"cider": 0.5}, {}, {}, [], [])

        monkeypatch.setattr(evaluation, "score", fake_score)
        monkeypatch.setattr(
            captioner, "caption_each", lambda images, **_: (Caption(i, f"of {i}", 0.0) for i in images)
        )
        result = evaluate(captioner, dataset)
        assert seen == {f"of {row['image']}": row["captions"] for row in dataset}
        assert (result.metrics, result.reason) == ({"cider": 0.5}, None)

    def test_of_a_single_image_has_no_shuffled_loss(self, captioner, dataset, no_scorer):
        result = evaluate(captioner, dataset.select([0]), max_new_tokens=2)
        assert result.shuffled_loss is None
        assert result.loss > 0

    def test_a_prompt_is_given_and_not_scored(self, captioner, dataset, no_scorer):
        plain, prompted = (evaluate(captioner, dataset, prompt=prompt, max_new_tokens=2) for prompt in ("", "Colour:"))
        assert plain.loss != pytest.approx(prompted.loss, abs=1e-4)
        assert not any(caption.startswith("Colour") for caption in prompted.captions)


@pytest.fixture(scope="module")
def command():
    """`main` of scripts/evaluate.py."""
    return load_script("evaluate").main


class TestCommand:
    @pytest.fixture(autouse=True)
    def logger(self, monkeypatch):
        monkeypatch.setattr(logging.getLogger("vlm_caption"), "handlers", [])  # the command sets its own

    @pytest.fixture
    def checkpoint(self, captioner, tmp_path):
        captioner.model.generation_config.max_new_tokens = 4
        captioner.model.save_pretrained(tmp_path / "checkpoint")
        captioner.processor.save_pretrained(tmp_path / "checkpoint")
        return str(tmp_path / "checkpoint")

    @pytest.fixture
    def options(self, checkpoint, dataset, tmp_path):
        return ["--checkpoint", checkpoint, "--data.path", str(tmp_path / "captions.csv"), "--limit", "3"]

    def test_shows_the_scores_and_some_captions(self, command, options, no_scorer, capsys):
        assert command([*options, "--captions", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("3 images of ")
        assert [line.split()[0] for line in lines[1:3]] == ["loss", "shuffled"]
        assert lines[3] == "not computed: bleu needs pycocoevalcap: pip install 'vlm-caption[metrics]'"
        assert [line.split(":")[0] for line in lines[4:]] == ["  dev_cyan.png", "  dev_magenta.png"]

    def test_writes_everything_to_a_file(self, command, options, dataset, no_scorer, tmp_path):
        (tmp_path / "out").mkdir()
        assert command([*options, "--json", str(tmp_path / "out" / "scores.json")]) == 0
        [file] = (tmp_path / "out").iterdir()
        found = json.loads(file.read_text())
        assert set(found["scores"]) == {"loss", "shuffled_loss"}
        assert list(found["captions"]) == list(dataset["image"])

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            (["--data.path", "nowhere"], "nowhere: there is no such file or folder"),
            (["--split", "tset"], "no image is in the split 'tset'"),
            (["--caption-column", "title"], "there is no caption column: looked for title and found image, caption"),
            (["--dev-share", "2"], "data.dev_share must be at least 0 and below 1, and 2.0 is not."),
            (["--checkpoint", "no/where"], "'no/where'"),
        ],
    )
    def test_what_cannot_be_used_ends_in_a_sentence(self, command, options, changes, complaint, capsys):
        assert command([*options, *changes]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("evaluate.py: ")
        assert complaint in error

    def test_a_file_that_could_not_be_written_is_refused_at_once(self, command, options, tmp_path, capsys):
        with pytest.raises(SystemExit) as caught:
            command([*options, "--json", str(tmp_path / "none" / "scores.json")])
        assert caught.value.code == 2
        assert "there is no folder" in capsys.readouterr().err
