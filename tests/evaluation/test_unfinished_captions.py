"""Captions that are kept as they are written: after a kill, the same captions as without one."""

import json
import logging

import pytest
from tiny_models import tiny_model, tiny_processor
from tiny_runs import write_colours

from vlm_caption.captioning.caption_file import CaptionFile
from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.consensus import DocumentFrequencies
from vlm_caption.data import DataError, load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.evaluation import captions as unfinished_captions
from vlm_caption.evaluation.captions import caption_settings, open_unfinished
from vlm_caption.evaluation.evaluate import evaluate
from vlm_caption.evaluation.scoring import ScoringSettings

SETTINGS = {"checkpoint": "a", "generation": {"num_beams": 1}}


def test_prompts_that_differ_behind_the_question_are_other_settings():
    model = tiny_model("dinov2")
    captioner = Captioner(model, tiny_processor(model.config))

    def settings(prompt: str) -> dict:
        return caption_settings(captioner, CaptionCollator(captioner.processor, lambda rows: {}, prompt=prompt), {})

    before, after = settings("Q: {question} Answer:"), settings("Q: {question} In short:")
    assert [name for name in before if before[name] != after[name]] == ["prompt"]


def test_other_document_frequencies_are_other_settings(tmp_path):
    model = tiny_model("dinov2")
    model.name_or_path = str(tmp_path)
    captioner = Captioner(model, tiny_processor(model.config))
    collator = CaptionCollator(captioner.processor, lambda rows: {})
    settings = []
    for captions in ([["a dog"]] * 6, [["a cat"]] * 6):
        DocumentFrequencies.count(captions).save(tmp_path)
        settings.append(caption_settings(captioner, collator, {"consensus": 3}))
    assert [name for name in settings[0] if settings[0][name] != settings[1][name]] == ["ranking"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(unfinished_captions, "BATCH_SIZE", 2)
    caplog.set_level(logging.INFO, logger="vlm_caption")


def captions_of(path, settings=SETTINGS) -> list[str]:
    with open_unfinished(path, settings) as file:
        return [entry["caption"] for entry in file.entries]


def add(path, *captions: str) -> None:
    with open_unfinished(path, SETTINGS) as file:
        file.add_entries({"image": str(number), "caption": text} for number, text in enumerate(captions))


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "new" / "unfinished.jsonl"
        add(path, "a \u2028 dog", "b", "c", "d")
        return path

    def test_gives_back_what_was_written(self, path):
        assert captions_of(path) == ["a \u2028 dog", "b", "c", "d"]

    @pytest.mark.parametrize(("cut", "left"), [(1, 4), (4, 2), (30, 2), (65, 0)])
    def test_takes_whole_batches_of_what_a_kill_left(self, path, cut, left):
        path.write_bytes(path.read_bytes()[:-cut])
        assert captions_of(path) == ["a \u2028 dog", "b", "c", "d"][:left]
        add(path, "e", "f")
        assert captions_of(path) == [*["a \u2028 dog", "b", "c", "d"][:left], "e", "f"]

    def test_starts_afresh_with_other_settings_and_says_which(self, path, caplog):
        assert captions_of(path, SETTINGS | {"generation": {"num_beams": 3}}) == []
        assert "was written with another generation: starting afresh" in caplog.text
        assert captions_of(path) == []

    @pytest.mark.parametrize("content", ["", "\n", "[1]\n", "no JSON\n", "\x00"])
    def test_takes_nothing_from_what_is_no_such_file(self, path, content):
        path.write_text(content)
        assert captions_of(path) == []

    def test_is_removed_at_the_end(self, path):
        open_unfinished(path, SETTINGS).remove()
        assert not path.exists()

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match=r"unfinished\.jsonl: captions cannot be kept there"):
            open_unfinished(tmp_path / "file" / "unfinished.jsonl", SETTINGS)


class TestEvaluation:
    @pytest.fixture
    def dataset(self, tmp_path):
        write_colours(tmp_path)
        return load_captions(tmp_path / "captions.csv", "train", limit=7)

    @pytest.fixture
    def run(self, dataset, tmp_path):
        def run(seed=0, is_kept=True, **generation):
            model = tiny_model("dinov2", seed=seed)
            return evaluate(
                Captioner(model, tiny_processor(model.config)),
                dataset,
                generation={"max_new_tokens": 4, "do_sample": True} | generation,
                scoring=ScoringSettings(metrics=["bleu"]),
                unfinished=tmp_path / "unfinished.jsonl" if is_kept else None,
            ).captions

        return run

    @pytest.fixture
    def batches(self, monkeypatch):
        """Where the batches that were written began; set `batches.most` to end the run at one."""

        class Batches(list):
            most = None

        batches = Batches()
        original = unfinished_captions._generate

        def generate(*args, **kwargs):
            if len(batches) == batches.most:
                raise KeyboardInterrupt
            batches.append(kwargs["seed"])
            return original(*args, **kwargs)

        monkeypatch.setattr(unfinished_captions, "_generate", generate)
        return batches

    def test_goes_on_where_it_was_and_ends_with_the_same_captions(self, run, batches, tmp_path, caplog):
        expected = run()
        file = tmp_path / "unfinished.jsonl"
        assert not file.exists()
        batches.clear()
        batches.most = 2
        with pytest.raises(KeyboardInterrupt):
            run()
        assert [json.loads(line)["caption"] for line in file.read_text().splitlines()[1:]] == expected[:4]
        with file.open("a") as out:
            out.write('{"image": "half of a na')
        batches.most = None
        assert run() == expected
        assert batches == [0, 2, 4, 6]
        assert "Resuming after 4 captions of 7" in caplog.text
        assert not file.exists()

    def test_keeps_the_consensus_of_several_captions(self, run, monkeypatch):
        frequencies = DocumentFrequencies.count([["red"], ["blue"]] * 5)
        monkeypatch.setattr("vlm_caption.captioning.generation.checkpoint_frequencies", lambda checkpoint: frequencies)
        several = []
        monkeypatch.setattr(
            DocumentFrequencies, "rank", lambda self, captions: (several.append(captions), [2, 0, 1])[1]
        )
        captions = run(consensus=3)
        assert [len(texts) for texts in several] == [3] * 7
        assert captions == [texts[2] for texts in several]

    def test_without_a_path_nothing_is_kept(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(CaptionFile, "__init__", lambda *args: pytest.fail("a file was opened"))
        assert len(run(is_kept=False)) == 7

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"max_new_tokens": 5}, "generation"), ({"num_beams": 2}, "generation"), ({"seed": 1}, "checkpoint")],
    )
    def test_other_settings_start_afresh(self, run, batches, change, named, caplog):
        batches.most = 1
        with pytest.raises(KeyboardInterrupt):
            run()
        batches.most = None
        run(**change)
        assert batches == [0, 0, 2, 4, 6]
        assert f"was written with another {named}" in caplog.text
