"""Evaluation in Python: losses, captions and scores of a captioner, and scores of files."""

import json

import numpy as np
import pytest
import torch
from coco_files import NO_JAVA, REFERENCES, RIGHT, SAME, write_files
from datasets import concatenate_datasets
from tiny_models import picture, tiny_model, tiny_processor
from tiny_runs import write_colours

from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.nll import caption_nll, paired_nll, rows_of_others
from vlm_caption.core.errors import ImageError
from vlm_caption.data import BadImages, DataError, Place, load_captions, open_corpus
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.evaluation import evaluate as evaluation
from vlm_caption.evaluation import scoring
from vlm_caption.evaluation.evaluate import InputSettings, evaluate, training_captions
from vlm_caption.evaluation.files import write_evaluation
from vlm_caption.evaluation.scoring import ScoringSettings
from vlm_caption.evaluation.table import evaluation_table
from vlm_caption.features.inputs import ImageInputs, with_index

pytestmark = pytest.mark.usefixtures("own_cache")


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


def run(captioner, dataset, max_new_tokens=4, **options):
    generation = options.pop("generation", {}) | {"max_new_tokens": max_new_tokens}
    inputs = InputSettings(**{name: options.pop(name) for name in ("prompt", "bad") if name in options})
    unfinished = options.pop("unfinished", None)
    settings = ScoringSettings(**({"metrics": NO_JAVA} | options))
    return evaluate(captioner, dataset, generation=generation, inputs=inputs, scoring=settings, unfinished=unfinished)


def evaluate_files(results, references, images_dir=None, **options):
    return evaluation.evaluate_files(results, references, images_dir=images_dir, scoring=ScoringSettings(**options))


class TestEvaluate:
    def test_gives_both_losses_and_a_caption_for_every_image(self, captioner, dataset):
        result = run(captioner, dataset)
        model, processor, rows = captioner.model, captioner.processor, with_index(dataset)
        collator = CaptionCollator(processor, ImageInputs(model, processor, rows["image"], cache=True))
        assert result.loss == pytest.approx(caption_nll(model, rows, collator, 3), rel=1e-5)
        shuffled = caption_nll(model, rows, collator, 3, shuffle_images=True)
        assert result.shuffled_loss == pytest.approx(shuffled, rel=1e-5)
        assert result.loss != result.shuffled_loss
        expected = captioner.caption(list(dataset["image"]), max_new_tokens=4)
        assert result.captions == [caption.text for caption in expected]
        assert result.references == list(dataset["captions"])

    @pytest.mark.parametrize("tokens", [1, 60, 2048])
    def test_one_pass_gives_both_losses_whatever_the_batches(self, captioner, dataset, tokens, monkeypatch):
        monkeypatch.setattr("vlm_caption.captioning.nll._TOKENS_A_BATCH", tokens)
        texts = [["a dog"], ["a red thing on a red ground", "two"], ["b", "a cat sits", "c"]]
        rows = with_index(dataset.remove_columns("captions").add_column("captions", texts))
        images = ImageInputs(captioner.model, captioner.processor, rows["image"], cache=True)
        collator = CaptionCollator(captioner.processor, images)
        expected = [caption_nll(captioner.model, rows, collator, 3, shuffle_images=other) for other in (False, True)]
        assert paired_nll(captioner.model, rows, collator) == pytest.approx(expected, rel=1e-5)
        assert paired_nll(captioner.model, rows.select([0]), collator)[1] is None

    def test_answers_of_ten_people_give_vqa_accuracy(self, captioner, dataset, monkeypatch):
        answers = [["red"] * 10, ["dog"] * 2 + ["cat"] * 8, ["c"] * 10]
        rows = dataset.remove_columns("captions").add_column("captions", answers)
        rows = rows.add_column("questions", [["What?"] * 10] * 3)
        texts = iter(["Red", "A dog.", "d"])
        monkeypatch.setattr(
            "vlm_caption.evaluation.captions.caption_batch", lambda *_: [next(texts) for _ in range(3)]
        )
        result = run(captioner, rows, prompt="Q: {question} A:", metrics=["bleu"])
        assert list(result.vqa_scores) == pytest.approx([1, 0.6, 0])
        assert result.to_dict()["vqa_accuracy"] == pytest.approx(1.6 / 3)
        assert "VQA accuracy" in evaluation_table(result)

    def test_says_how_many_references_were_cut(self, captioner, dataset):
        result = evaluate(
            captioner,
            dataset,
            generation={"max_new_tokens": 2},
            inputs=InputSettings(max_caption_tokens=1),
            scoring=ScoringSettings(metrics=["bleu"]),
        )
        assert result.cut_captions == 3
        assert any(
            note.startswith("3 of 3 references are longer than data.max_caption_tokens, 1") for note in result.notes
        )

    def test_opens_every_picture_once_and_none_where_features_are_cached(self, captioner, dataset, monkeypatch):
        opened = []
        original = evaluation.PictureOpener.__call__

        def count(self, image):
            opened.append(image)
            return original(self, image)

        monkeypatch.setattr(evaluation.PictureOpener, "__call__", count)
        first = run(captioner, dataset)
        assert sorted(opened) == sorted(dataset["image"])
        assert run(captioner, dataset).captions == first.captions
        assert len(opened) == len(dataset)

    def test_of_a_tower_that_is_not_frozen_opens_every_picture_once(self, dataset, monkeypatch):
        model = tiny_model("dinov2", freeze_vision=False)
        opened = []
        original = evaluation.PictureOpener.__call__
        monkeypatch.setattr(
            evaluation.PictureOpener, "__call__", lambda self, image: opened.append(image) or original(self, image)
        )
        run(Captioner(model, tiny_processor(model.config)), dataset)
        assert len(opened) == len(dataset)

    def test_says_why_there_are_no_metrics(self, captioner, dataset, no_scorer):
        result = run(captioner, dataset)
        assert set(result.metrics.values()) == {None}
        assert result.not_computed["bleu_1"] == "bleu needs pycocoevalcap: pip install 'vlm-caption[metrics]'"
        assert result.shuffled_cider is result.cider_gain is None
        assert "not computed: BLEU-1, BLEU-2, BLEU-3, BLEU-4: bleu needs" in evaluation_table(result)

    def test_of_a_single_image_has_nothing_shuffled(self, captioner, dataset):
        result = run(captioner, dataset.select([0]))
        assert result.shuffled_loss is result.shuffled_cider is None
        assert result.loss > 0

    def test_a_prompt_is_given_and_not_scored(self, captioner, dataset):
        plain, prompted = (run(captioner, dataset, prompt=prompt) for prompt in ("", "Colour:"))
        assert plain.loss != pytest.approx(prompted.loss, abs=1e-4)
        assert not any(caption.startswith("Colour") for caption in prompted.captions)

    def test_generation_settings_are_used_and_told(self, captioner, dataset):
        result = run(captioner, dataset, max_new_tokens=1)
        assert all(len(caption) <= 1 for caption in result.captions)
        assert result.generation == {"max_new_tokens": 1}

    def test_sampled_captions_are_the_same_every_time_and_leave_chance_alone(self, captioner, dataset):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first, second = (run(captioner, dataset, generation={"do_sample": True}) for _ in range(2))
        assert torch.rand(1) == expected
        assert first.captions == second.captions
        assert first.captions != run(captioner, dataset).captions

    def test_counts_captions_that_are_training_captions(self, captioner, dataset):
        captions = run(captioner, dataset).captions
        result = run(captioner, dataset, training_captions=captions[:1])
        assert result.diversity.unseen < 1
        assert "unseen" in result.intervals
        assert run(captioner, dataset).not_computed["unseen"].startswith("there are no training captions")

    def test_a_picture_that_cannot_be_opened_is_named(self, captioner, dataset, tmp_path):
        (tmp_path / Place.parse(dataset["image"][1]).short_name).write_bytes(b"no picture")
        with pytest.raises(ImageError, match=Place.parse(dataset["image"][1]).short_name):
            run(captioner, dataset)

    def test_a_clip_model_that_is_not_there_is_a_reason(self, captioner, dataset, tmp_path):
        result = run(captioner, dataset, clip_model=str(tmp_path / "none"))
        assert result.metrics["clip_score"] is None
        assert "CLIPScore: the model" in result.not_computed["clip_score"]

    def test_another_system_that_does_not_fit_is_refused_before_the_work(self, captioner, dataset, tmp_path):
        other = tmp_path / "other.json"
        other.write_text(json.dumps([{"image_id": "none.png", "caption": "a"}]))
        with pytest.raises(DataError, match=r"other\.json: no image has both a caption and references"):
            run(captioner, dataset, compare_with=other, unfinished=tmp_path / "unfinished")
        assert not (tmp_path / "unfinished").exists()


class TestQuestions:
    PROMPT = "<image> {question} Answer:"

    @pytest.fixture
    def dataset(self, tmp_path):
        """Three questions about one picture and one about another of the same name."""
        lines = ["image,question,answer"]
        for folder, questions in (("x", ("What?", "Where?", "Who?")), ("y", ("What?",))):
            (tmp_path / folder).mkdir()
            picture(len(folder + questions[0])).save(tmp_path / folder / "1.png")
            lines += [f"{folder}/1.png,{question},a {folder} there" for question in questions]
        (tmp_path / "captions.csv").write_text("\n".join(lines))
        return load_captions(tmp_path / "captions.csv", dev_share=0, questions=True)

    def test_have_ids_that_can_be_scored_again_and_compared(self, captioner, dataset, tmp_path):
        result = run(captioner, dataset, prompt=self.PROMPT)
        write_evaluation(tmp_path / "first", result)
        names = ["results.json", "references.json"]
        again = evaluate_files(*(tmp_path / "first" / name for name in names), metrics=NO_JAVA)
        assert again.image_ids == [f"{tmp_path}/{id_}" for id_ in IDS]
        compared = run(captioner, dataset, prompt=self.PROMPT, compare_with=tmp_path / "first")
        assert compared.comparison.counts == {"wins": 0, "losses": 0, "ties": 4}

    def test_are_counted_apart_from_their_images(self, captioner, dataset):
        result = run(captioner, dataset, prompt=self.PROMPT)
        assert (result.counted, result.to_dict()["images"]) == ("4 questions about 2 images", 2)
        first = run(captioner, dataset.select([0]), prompt=self.PROMPT)
        assert (first.shuffled_loss, first.shuffled_cider) == (None, None)
        assert first.loss is not None

    def test_a_bad_picture_counts_once_among_the_pictures(self, captioner, dataset, tmp_path):
        (tmp_path / "x" / "1.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match="at least 1 of 2 images are bad"):
            run(captioner, dataset, prompt=self.PROMPT, bad=BadImages(max_share=0.4))


def test_an_image_of_two_corpora_has_two_ids_that_can_be_scored_again(captioner, dataset, tmp_path):
    twice = concatenate_datasets([dataset, dataset.select([0])])
    result = run(captioner, twice)
    assert (result.counted, result.num_images) == (f"{len(twice)} captions of {len(dataset)} images", len(dataset))
    assert result.image_ids[-1] == f"{result.image_ids[0]} (2)"
    write_evaluation(tmp_path / "first", result)
    names = ["results.json", "references.json"]
    again = evaluate_files(*(tmp_path / "first" / name for name in names), metrics=NO_JAVA)
    assert again.image_ids == result.image_ids


def test_other_images_are_never_the_same_one():
    assert rows_of_others("abcd") == [2, 3, 0, 1]
    assert rows_of_others("aaaab") == [4, 4, 4, 4, 0]
    images = "aabccc"
    assert all(images[row] != images[other] for row, other in enumerate(rows_of_others(images)))
    with pytest.raises(ValueError, match="no other image"):
        rows_of_others("aaa")


IDS = ["x/1.png: What?", "x/1.png: Where?", "x/1.png: Who?", "y/1.png: What?"]


class TestImageIds:
    @pytest.mark.parametrize(
        ("images", "expected"),
        [
            (["a/COCO_val2014_000000391895.jpg", "a/000000000007.jpg"], [391895, 7]),
            (["a/000000000007.jpg", "a/b.jpg"], ["000000000007.jpg", "b.jpg"]),
            (["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["a/1.jpg", "b/1.jpg", "2.jpg"]),
            (["val/000000000007.jpg", "train/000000000007.jpg"], ["val/000000000007.jpg", "train/000000000007.jpg"]),
        ],
    )
    def test_are_cocos_numbers_or_names_or_paths(self, images, expected):
        assert evaluation._image_ids(images) == expected


class TestTrainingCaptions:
    def test_are_those_of_the_split_whether_its_pictures_are_there_or_not(self, tmp_path):
        write_colours(tmp_path)
        (tmp_path / "train_red.png").unlink()
        corpus = open_corpus(tmp_path / "captions.csv")
        captions = training_captions(corpus, "train")
        rows = (tmp_path / "captions.csv").read_text().splitlines()
        assert len(captions) == sum("train_" in row and "train_red" not in row for row in rows)
        assert training_captions(corpus, "none") is None


class TestEvaluateFiles:
    def test_scores_captions_and_sees_that_they_belong_to_their_images(self, tmp_path):
        result = evaluate_files(*write_files(tmp_path, RIGHT, REFERENCES), metrics=NO_JAVA)
        assert result.metrics["bleu_4"] == pytest.approx(1)
        assert result.shuffled_cider < result.metrics["cider"] / 2
        assert not result.ignores_images
        assert result.notes == []
        assert result.loss is None
        low, high = result.intervals["cider"]
        assert low <= result.metrics["cider"] <= high

    def test_calls_out_captions_that_do_not_depend_on_the_images(self, tmp_path):
        result = evaluate_files(*write_files(tmp_path, SAME, REFERENCES), metrics=NO_JAVA)
        assert result.shuffled_cider == pytest.approx(result.metrics["cider"])
        [note] = result.notes
        assert note.startswith("Nothing shows that the captions depend on the images: CIDEr is ")
        assert note in evaluation_table(result)
        assert result.to_dict()["ignores_images"] is True

    def test_draws_no_conclusion_from_captions_that_share_nothing_with_any_reference(self, tmp_path):
        russian = {image: f"собака {number}" for number, image in enumerate(REFERENCES)}
        result = evaluate_files(*write_files(tmp_path, russian, REFERENCES), metrics=NO_JAVA)
        assert result.metrics["cider"] == result.shuffled_cider == 0
        assert not result.ignores_images
        assert result.to_dict()["tokenizer"] == "ptb"

    def test_scores_the_intersection_where_allowed_and_says_so(self, tmp_path):
        captions = {image: text for image, text in RIGHT.items() if image != "image0"} | {"other": "a dog"}
        files = write_files(tmp_path, captions, REFERENCES)
        with pytest.raises(DataError, match="1 images have no caption, id 'image0'; 1 captions have no references"):
            evaluate_files(*files, metrics=NO_JAVA)
        result = evaluate_files(*files, metrics=NO_JAVA, allow_missing=True)
        assert (len(result.captions), result.missing, result.extra) == (11, ["image0"], ["other"])
        [note] = result.notes
        assert note.startswith("Only the 11 images that have both a caption and references were scored")
        assert note in evaluation_table(result)
        assert (result.to_dict()["missing"], result.to_dict()["extra"]) == (1, 1)

    def test_finds_pictures_by_their_names_in_the_references(self, tmp_path):
        picture(0).save(tmp_path / "0.png")
        files = write_files(tmp_path, RIGHT, REFERENCES, image0="0.png", image1="gone.png")
        result = evaluate_files(*files, metrics=NO_JAVA, images_dir=tmp_path)
        assert result.images == [str(tmp_path / "0.png"), *[None] * 11]
        with pytest.raises(DataError, match="none of the pictures that"):
            evaluate_files(*files, metrics=NO_JAVA, images_dir=tmp_path / "cache")

    def test_compares_two_systems_on_the_same_images(self, tmp_path):
        files = write_files(tmp_path, RIGHT, REFERENCES)
        folder = tmp_path / "other"
        folder.mkdir()
        write_files(folder, SAME, REFERENCES)
        result = evaluate_files(*files, metrics=NO_JAVA, compare_with=folder)
        comparison = result.comparison
        first, other = (scores.per_image["cider"] for scores in (comparison.scores, comparison.other_scores))
        counts = comparison.counts
        assert list(comparison.leads) == list(first - other)
        assert (counts["wins"], counts["losses"]) == (int(np.sum(first > other)), int(np.sum(first < other)))
        assert sum(counts.values()) == len(REFERENCES)
        assert counts["wins"] > counts["losses"]
        told = result.to_dict()["comparison"]["metrics"]["cider"]
        assert told["difference"] == pytest.approx(told["first"] - told["other"])
        assert told["low"] > 0
        line = f"by CIDEr {counts['wins']} wins, {counts['losses']} losses, {counts['ties']} ties"
        assert line in evaluation_table(result)

    def test_compares_on_what_both_have_where_allowed(self, tmp_path):
        files = write_files(tmp_path, RIGHT, REFERENCES)
        other = tmp_path / "other.json"
        other.write_text(json.dumps([{"image_id": f"image{n}", "caption": "a dog"} for n in range(5, 12)]))
        with pytest.raises(
            DataError, match=r"other\.json: 5 images have no caption, id 'image0', 'image1', 'image2', …"
        ):
            evaluate_files(*files, metrics=NO_JAVA, compare_with=other)
        result = evaluate_files(*files, metrics=NO_JAVA, compare_with=other, allow_missing=True)
        assert result.comparison.rows == list(range(5, 12))
        assert len(result.comparison.scores.per_image["cider"]) == 7
        assert len(result.captions) == 12
        assert any(note.endswith("the comparison is on the other 7.") for note in result.notes)

    def test_gives_every_picture_to_clip_once(self, tmp_path, monkeypatch):
        names = {image: f"{image}.png" for image in REFERENCES}
        for number, name in enumerate(names.values()):
            picture(number, width=20 + number).save(tmp_path / name)

        def score_clip(images, captions, model):
            return np.array([image.width / 100 for image, _ in zip(images, captions, strict=True)])

        monkeypatch.setattr(scoring, "score_clip", score_clip)
        files = write_files(tmp_path, RIGHT, REFERENCES, **names)
        result = evaluate_files(*files, metrics=NO_JAVA, images_dir=tmp_path, clip_model="some/clip")
        assert result.clip_scores.tolist() == [(20 + number) / 100 for number in range(12)]
        low, high = result.intervals["clip_score"]
        assert low < result.metrics["clip_score"] < high
        assert "clip_score" not in result.not_computed
        assert evaluate_files(*files, metrics=NO_JAVA, clip_model="some/clip").metrics["clip_score"] is None
