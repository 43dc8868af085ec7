"""What a run tells while it trains and leaves behind: lines, `metrics.jsonl`, reports, captions and their CIDEr."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_processor
from tiny_runs import interrupted_before, step_values, tiny_settings, weights, write_colours

from vlm_caption.captioning.generation import caption_rows
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.console import describe_seconds
from vlm_caption.core.errors import ConfigError
from vlm_caption.data import DataError, load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index
from vlm_caption.training import launch
from vlm_caption.training import loop as training_loop
from vlm_caption.training import report as reporting
from vlm_caption.training import train as training
from vlm_caption.training.dev_scores import score_cider
from vlm_caption.training.metrics_log import read_metrics, write_metrics
from vlm_caption.training.progress import PlainLines, ProgressBar
from vlm_caption.training.run_folder import holding
from vlm_caption.training.state import RunState
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def stopped_run(run, monkeypatch):
    """Runs until the sixth step, as if killed there; the last checkpoint then is that of step 4."""

    def stopped_run(*args, **changes):
        with interrupted_before(5, monkeypatch):
            run(*args, **changes)

    return stopped_run


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(entries: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if "second" not in k and "runtime" not in k} for entry in entries]


class TestMetricsLog:
    def test_is_read_as_it_was_written_whatever_names_and_captions_hold(self, tmp_path):
        log = [{"step": 1, "samples": [{"image": "a\u2028b.png", "caption": "one\x85two"}]}, {"step": 2, "loss": 1.0}]
        write_metrics(tmp_path, log)
        assert read_metrics(tmp_path) == log

    def test_has_a_line_for_each_log_entry_with_what_is_measured(self, run, tmp_path):
        run(max_steps=3, eval_steps=3, samples=1)
        lines = metrics(tmp_path / "run")
        assert [next(iter(line)) for line in lines] == ["step"] * 5
        assert [line["step"] for line in lines] == [1, 2, 3, 3, 3]
        measured = {
            "loss",
            "learning_rate",
            "grad_norm",
            "epoch",
            "captions_per_second",
            "tokens_per_second",
            "seconds",
        }
        assert measured <= lines[0].keys()
        assert lines[0]["captions_per_second"] > 0
        assert lines[0]["tokens_per_second"] > 3 * lines[0]["captions_per_second"]  # letters, and an end
        assert "eval_loss" in lines[3]
        assert lines[4]["samples"][0].keys() == {"image", "caption", "reference"}
        assert [line["seconds"] for line in lines[:4]] == sorted(line["seconds"] for line in lines[:4])

    def test_is_there_to_follow_while_the_run_trains(self, run, tmp_path, monkeypatch):
        seen = []

        class Watched(training.TrainingLoop):
            def step(self, batches):
                seen.append(len(metrics(tmp_path / "run")))
                super().step(batches)

        monkeypatch.setattr(training, "TrainingLoop", Watched)
        run(max_steps=3)
        assert seen == [0, 1, 2]

    @pytest.mark.parametrize("torn", ['{"step": 6, "lo', '{"step": 6, "loss": 1.0}\n{"step": 7, "loss": 1.0}\n'])
    def test_a_resumed_run_has_every_step_once(self, run, stopped_run, tmp_path, torn):
        run("whole", eval_steps=2, samples=1)
        stopped_run(eval_steps=2, samples=1)
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write(torn)
        run(eval_steps=2, samples=1)
        assert without_times(metrics(tmp_path / "run")) == without_times(metrics(tmp_path / "whole"))

    def test_the_last_steps_are_in_it_whatever_the_interval(self, run, tmp_path):
        run(max_steps=5, logging_steps=3)
        assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [3, 5]

    def test_seconds_are_those_of_all_parts_and_stay_in_the_card(self, run, stopped_run, tmp_path):
        stopped_run()
        before = metrics(tmp_path / "run")[3]["seconds"]
        run()
        lines = metrics(tmp_path / "run")
        assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
        assert lines[3]["seconds"] == before

        def told():
            return json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]["seconds"]

        assert told() == round(lines[-1]["seconds"])
        first = told()
        run()
        assert told() == first
        assert metrics(tmp_path / "run") == lines

    def test_each_stage_has_its_own_and_the_seconds_are_those_of_all(self, tmp_path):
        write_colours(tmp_path)
        config = RunConfig.load(None, tiny_settings(tmp_path) | {"training.max_steps": 2, "training.samples": 1})
        config.stages = [{"name": "first"}, {"name": "second", "max_steps": 3}]
        train(config)
        first, second = (metrics(tmp_path / "run" / name) for name in ("stage-1-first", "stage-2-second"))
        assert [[line["step"] for line in lines if "loss" in line] for lines in (first, second)] == [[1, 2], [1, 2, 3]]
        assert {"curves.png", "samples.html"} <= {path.name for path in (tmp_path / "run").iterdir()}
        assert {"curves.png", "samples.html"} <= {path.name for path in (tmp_path / "run" / "stage-1-first").iterdir()}

        def told():
            return json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]["seconds"]

        seconds = told()
        assert seconds == round(sum(lines[-2]["seconds"] for lines in (first, second)))
        train(config)
        assert told() == seconds


class TestLines:
    STATE = RunState(global_step=10, max_steps=40)

    def test_a_plain_line_says_how_long_it_will_take(self, caplog, monkeypatch):
        caplog.set_level(logging.INFO, "vlm_caption")
        monkeypatch.setattr("time.monotonic", lambda: clock)
        clock = 100.0
        lines = PlainLines(RunState(global_step=5))
        clock = 110.0
        lines.log(self.STATE, {"loss": 2.31, "captions_per_second": 411.96, "learning_rate": 1e-3})
        lines.log(self.STATE, {"eval_loss": 2.5, "eval_cider": 0.5213, "epoch": 1.0})
        assert caplog.messages == [
            "step 10/40  loss 2.31  412 captions/s  1 min 00 s left",  # two seconds for each of 30 steps
            "step 10/40  dev loss 2.5000  dev CIDEr 52.1",
        ]

    def test_a_bar_goes_on_from_the_steps_that_were_made(self, capsys):
        progress = ProgressBar(RunState(global_step=5, max_steps=40))
        progress.advance(self.STATE)
        progress.log(self.STATE, {"loss": 2.31, "captions_per_second": 411.96, "learning_rate": 1e-3})
        progress.log(self.STATE, {"eval_loss": 2.5})
        assert (progress.bar.n, progress.bar.initial) == (10, 5)
        progress.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "step 10/40  dev loss 2.5000" in captured.err
        assert "loss 2.31  412 captions/s" in captured.err

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min")],
    )
    def test_seconds_are_told_as_people_do(self, seconds, words):
        assert describe_seconds(seconds) == words


class TestReports:
    def test_nothing_is_reported_unless_asked_for(self, run, tmp_path):
        run(max_steps=1)
        assert not list((tmp_path / "run").glob("**/events.*"))

    def test_a_tracker_is_closed_also_by_a_run_that_makes_no_step(self, run, monkeypatch):
        pytest.importorskip("tensorboard")
        finished = []
        monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda tracker: finished.append(tracker))
        for count in (1, 2):
            run(max_steps=2, report_to="tensorboard")
            assert len(finished) == count

    def test_tensorboard_gets_the_log(self, run, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run(max_steps=3, eval_steps=2, samples=1, report_to="tensorboard")
        [file] = (tmp_path / "run").glob("**/events.*")
        events = EventAccumulator(str(file)).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
        losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
        assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
        assert [event.step for event in events.Scalars("eval/loss")] == [2, 3]
        assert "train/captions_per_second" in events.Tags()["scalars"]

    def test_an_unknown_one_is_refused_with_the_known_ones(self, run):
        with pytest.raises(ConfigError, match=r"report_to must be none or one of .*tensorboard.*'tensorbord' is not"):
            run(report_to="tensorbord")

    def test_a_package_that_is_missing_is_named_before_anything_is_begun(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(launch, "get_available_trackers", list)
        with pytest.raises(ConfigError) as caught:
            run(report_to="trackio")
        assert str(caught.value) == (
            "training.report_to trackio needs a package that is not installed: pip install trackio, or choose none."
        )
        assert not (tmp_path / "run").exists()


class TestFolder:
    def test_a_second_run_at_the_same_time_is_refused(self, run, tmp_path):
        with holding(tmp_path / "run"), pytest.raises(ConfigError, match="run is in use by another run"):
            run()
        assert not (tmp_path / "run").exists()  # nothing came of it
        run(max_steps=1)

    def test_other_captions_are_refused(self, run, stopped_run, tmp_path):
        stopped_run()
        table = tmp_path / "captions.csv"
        table.write_text(table.read_text().replace("train_blue.png,blue", "train_blue.png,navy"))
        with pytest.raises(ConfigError) as caught:
            run()
        assert str(caught.value) == (
            f"{tmp_path / 'run'} holds a run on other data (train: other images' names or captions): choose another "
            "training.output_dir, put the data back, or start afresh with training.resume false."
        )

    def test_other_numbers_of_images_are_told(self, run, stopped_run, tmp_path):
        stopped_run()
        table = tmp_path / "captions.csv"
        table.write_text(table.read_text().replace("dev_blue.png,blue,dev\n", ""))
        with pytest.raises(ConfigError, match=r"\(dev: 8 images with 8 captions → 7 images with 7 captions\)"):
            run()

    def test_a_file_that_was_merely_written_again_is_no_change(self, run, stopped_run, tmp_path):
        stopped_run()
        table = tmp_path / "captions.csv"
        table.write_text(table.read_text() + "\n")
        run()
        assert len(step_values(tmp_path / "run")) == 8


def test_the_dev_loss_of_the_kept_weights_is_not_taken_again(run, monkeypatch):
    taken = []
    caption_nll = reporting.caption_nll

    def counted(*args, shuffle_images=False):
        taken.append(shuffle_images)
        return caption_nll(*args, shuffle_images=shuffle_images)

    monkeypatch.setattr(reporting, "caption_nll", counted)
    run(max_steps=4, eval_steps=2)
    assert taken == [True]


def test_samples_are_shown_over_time_also_after_a_restart(run, stopped_run, tmp_path):
    stopped_run(eval_steps=2, samples=2)
    run(eval_steps=2, samples=2)
    page = (tmp_path / "run" / "samples.html").read_text()
    assert page.count("<figure>") == 2
    assert "step 2<" in page or "2 to " in page
    assert page.count(">kept<") == page.count(">last<") == 2


def test_samples_that_are_asked_for_too_late_are_those_of_the_end(run, tmp_path):
    run(max_steps=2)
    assert not (tmp_path / "run" / "samples.html").exists()
    run(max_steps=2, samples=1)
    assert "step 2<" in (tmp_path / "run" / "samples.html").read_text()
    run(max_steps=2, samples=2)
    assert (tmp_path / "run" / "samples.html").read_text().count("<figure>") == 2


def test_more_samples_than_before_stand_beside_those_of_a_finished_run(run, tmp_path):
    run(max_steps=2, eval_steps=1, samples=1)
    run(max_steps=2, eval_steps=1, samples=3)
    page = (tmp_path / "run" / "samples.html").read_text()
    assert page.count("<figure>") == page.count(">kept<") == 3


def test_a_picture_that_is_gone_at_the_end_costs_the_page_alone(run, tmp_path, monkeypatch, caplog):
    prepare = training.prepare_folder

    def remove_picture(*args):
        prepare(*args)
        (tmp_path / "dev_cyan.png").unlink()

    monkeypatch.setattr(training, "prepare_folder", remove_picture)
    run(max_steps=2, samples=1)
    assert any("samples.html was not written" in message for message in caplog.messages)
    assert not (tmp_path / "run" / "samples.html").exists()
    assert (tmp_path / "run" / "model_card.json").exists()


class TestEvalCaptions:
    """CIDEr of dev captions while a run trains."""

    @pytest.fixture
    def scripted(self, monkeypatch):
        """Has the evaluations of the next runs find these values; returns the rows that were scored."""

        def scripted(*values):
            left, scored = list(values), []

            def score_cider(model, collator, rows, batch_size):
                scored.append([row["captions"][0] for row in rows])
                return left.pop(0)

            monkeypatch.setattr(training_loop, "score_cider", score_cider)
            return scored

        return scripted

    def test_the_weights_with_the_highest_cider_are_kept(self, run, scripted, tmp_path, caplog):
        scored = scripted(0.1, 0.5, 0.3, 0.4)
        caplog.set_level(logging.INFO, "vlm_caption")
        run(eval_steps=2, eval_captions=3, batch_size=8)
        assert step_values(tmp_path / "run", "eval_cider") == [0.1, 0.5, 0.3, 0.4]
        assert scored == [["cyan", "magenta", "yellow"]] * 4
        assert "Highest dev CIDEr: 50.0, after step 4 of 8; these weights are kept" in caplog.messages
        losses = step_values(tmp_path / "run", "eval_loss")
        assert losses[-1] < losses[1]
        facts = json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]
        assert (facts["best_step"], facts["dev_cider"], facts["dev_cider_images"]) == (4, 0.5, 3)
        assert facts["dev_loss"] == losses[1]
        assert "Chosen by CIDEr: 50.0 on 3 of the images watched." in (tmp_path / "run" / "README.md").read_text()

    def test_among_equal_cider_the_lowest_dev_loss_is_kept(self, run, scripted, tmp_path):
        scripted(0.1, 0.5, 0.3, 0.5)
        run(eval_steps=2, eval_captions=3, batch_size=8)
        losses = step_values(tmp_path / "run", "eval_loss")
        assert losses[-1] < losses[1]
        assert json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]["best_step"] == 8

    def test_among_equal_cider_a_higher_dev_loss_is_not_kept(self):
        state = RunState()
        for step, cider, loss in ((1, 0.5, 2.0), (2, 0.5, 3.0), (3, 0.4, 1.0)):
            state.global_step = step
            state.choose_best(state.log({"eval_cider": cider, "eval_loss": loss}))
        assert (state.best_global_step, state.best_metric) == (1, 0.5)

    def test_a_loss_that_is_not_a_number_is_never_the_best_for_long(self):
        state = RunState()
        for step, loss in ((1, float("nan")), (2, 3.0), (3, float("nan"))):
            state.global_step = step
            state.choose_best(state.log({"eval_loss": loss}))
        assert (state.best_global_step, state.best_metric) == (2, 3.0)

    def test_patience_counts_by_cider(self, run, scripted, tmp_path):
        scripted(0.5, 0.3, 0.4)
        run(eval_steps=2, eval_captions=3, patience=2)
        assert len(step_values(tmp_path / "run", "eval_cider")) == 3

    def test_training_goes_on_as_if_nobody_had_asked(self, run, stopped_run, tmp_path):
        run("unasked", eval_steps=3)
        run("asked", eval_steps=3, eval_captions=4, samples=1)
        assert step_values(tmp_path / "asked") == step_values(tmp_path / "unasked")
        stopped_run("stopped", eval_steps=3, eval_captions=4, samples=1)
        run("stopped", eval_steps=3, eval_captions=4, samples=1)
        expected = weights(tmp_path / "asked")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "stopped").items())
        assert step_values(tmp_path / "stopped", "eval_cider") == step_values(tmp_path / "asked", "eval_cider")

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"eval_captions": 9, "eval_images": 8}, "eval_captions 9 must be at most training.eval_images, 8."),
            ({"eval_captions": -1}, "training.eval_captions must be at least 0, and -1 is not."),
            ({"eval_captions": 1}, "training.eval_captions must be 0 or at least 2"),
        ],
    )
    def test_numbers_that_cannot_be_are_refused(self, run, changes, complaint):
        with pytest.raises(ConfigError) as caught:
            run(**changes)
        assert complaint in str(caught.value)

    def test_a_single_dev_image_that_is_left_is_refused(self, run, scripted, tmp_path):
        write_colours(tmp_path, dev_colours=("red",))
        with pytest.raises(DataError, match=r"single image of the split 'dev'.* set training\.eval_captions to 0"):
            run(eval_captions=2)
        run(max_steps=1)

    def test_a_missing_scorer_is_named_before_anything_is_begun(self, run, tmp_path, monkeypatch):
        find_spec = training.importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *args: None if name == "pycocoevalcap" else find_spec(name, *args)
        )
        with pytest.raises(ConfigError, match=r"needs pycocoevalcap: pip install 'vlm-caption\[metrics\]'"):
            run(eval_captions=2)
        assert not (tmp_path / "run").exists()

    @pytest.fixture
    def parts(self, tmp_path):
        write_colours(tmp_path, dev_colours=("red", "blue", "white"))
        dataset = with_index(load_captions(tmp_path / "captions.csv", "dev"))
        model = tiny_model("dinov2", image_tokens="patches", image_grid=2)
        processor = tiny_processor(model.config)
        images = ImageInputs(model, processor, dataset["image"], cache=False)
        return model, CaptionCollator(processor, images), list(dataset)

    def test_captioning_draws_nothing_and_leaves_the_mode(self, parts):
        def states():
            return torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"]

        before = states()
        parts[0].generation_config.do_sample = True
        for mode in (True, False):
            parts[0].train(mode)
            caption_rows(*parts, batch_size=2)
            assert parts[0].training is mode
        after = states()
        assert torch.equal(after[0], before[0])
        assert after[1] == before[1]
        assert (after[2] == before[2]).all()

    def test_a_caption_does_not_depend_on_the_others_of_its_batch(self, parts):
        captions = caption_rows(*parts, batch_size=3)
        assert captions == caption_rows(*parts, batch_size=1)
        assert captions[1:] == caption_rows(*parts[:2], parts[2][1:], batch_size=2)

    def test_an_answer_is_scored_by_the_answers_to_its_question(self, parts, monkeypatch):
        model, collator, rows = parts
        questions = ["what?", "where?", "what?"]
        texts = ["a red square", "the blue sea", "snow on a roof"]
        monkeypatch.setattr("vlm_caption.training.dev_scores.caption_rows", lambda *args: texts)

        def cider(*answers: str) -> float:
            asked = [
                row
                | {"questions": questions, "captions": [text if answer == "right" else answer for answer in answers]}
                for row, text in zip(rows, texts, strict=True)
            ]
            return score_cider(model, collator, asked, 2)

        assert cider("a", "right", "b") == 0
        assert cider("a", "b", "right") > 1

    def test_references_written_by_the_model_have_the_highest_score(self, parts, monkeypatch):
        texts = ["a red square", "the blue sea", "snow on a roof"]
        monkeypatch.setattr("vlm_caption.training.dev_scores.caption_rows", lambda *args: texts)
        model, collator, rows = parts
        right = [row | {"captions": [text]} for row, text in zip(rows, texts, strict=True)]
        wrong = [row | {"captions": [text]} for row, text in zip(rows, texts[1:] + texts[:1], strict=True)]
        assert score_cider(model, collator, right, 2) > 5 > 1 > score_cider(model, collator, wrong, 2)


def test_captions_that_do_not_depend_on_the_images_get_advice(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    for picture in tmp_path.glob("dev_*.png"):
        Image.new("RGB", (32, 32), "red").save(picture)
    run(max_steps=1)
    assert "hardly depend on the images: train for more epochs, or start from" in caplog.messages[-1]


def test_one_line_before_the_first_step_says_what_will_happen(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    run(max_steps=3)
    [line] = [message for message in caplog.messages if message.startswith("Training on ")]
    assert line == (
        "Training on 8 images with 8 captions, 3 steps of up to 4 images (1.5 epochs) with 2 of warm-up; evaluating "
        "on 8 images every 100 steps, saving every 2; the time left is known after 1"
    )


def test_the_end_names_pictures_and_the_command_to_caption(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    run(max_steps=1, samples=1)
    folder = tmp_path / "run"
    assert (
        f"Saved the bridge to {folder}; see {folder / 'curves.png'} and {folder / 'samples.html'}" in caplog.messages
    )
    assert f"To caption with it: python scripts/caption.py --checkpoint {folder} photo.jpg" in caplog.messages
