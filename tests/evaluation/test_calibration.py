"""Fitting confidences: what is right, the drawn pictures, the fit, and the whole command on a tiny captioner."""

import json

import numpy as np
import pytest
from commands import load_script
from PIL import Image
from tiny_models import picture, tiny_model, tiny_processor

from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.confidence import CONFIDENCE_NAME, Confidence
from vlm_caption.evaluation.calibration import half_of
from vlm_caption.evaluation.calibration_report import CalibrationReport, draw_reliability
from vlm_caption.evaluation.fitting import fit_regression
from vlm_caption.evaluation.negatives import draw_negatives
from vlm_caption.evaluation.rightness import shares_below

IMAGES = 48


def test_a_caption_is_right_if_its_references_tell_its_image_apart():
    references = [["a dog runs", "a brown dog"], ["a cat sits"], ["two men play"], ["a red car"]] * 2
    images = list(range(8))
    cider, shares = shares_below(["a brown dog runs", "two men play", "nothing", "a red car"] * 2, references, images)
    assert cider[0] > cider[1] == cider[2] == 0
    # Six other images have other references, and one has the same.
    assert shares.tolist() == [6 / 7, 0, 0, 6 / 7] * 2


def test_rows_of_the_same_image_are_no_other_images():
    references = [["a dog"], ["a dog"], ["a cat"], ["a bird"]]
    _, shares = shares_below(["a dog", "a dog", "a cat", "a bird"], references, ["x", "x", "y", "z"])
    assert shares.tolist() == [1, 1, 1, 1]


def test_captions_of_one_image_are_in_one_half():
    images = [f"{number % 30}.jpg" for number in range(90)]
    is_first = half_of(images, seed=0)
    assert all(len(set(is_first[number::30])) == 1 for number in range(30))
    assert is_first.sum() == 45


def test_drawn_pictures_are_the_same_for_the_same_seed():
    photos = [picture(1, 300, 200)]
    first, second, other = (draw_negatives(3, photos, seed) for seed in (0, 0, 1))
    assert [kind for kind, _ in first] == [kind for kind in dict(first) for _ in range(3)]
    assert len(dict(first)) == 7
    assert [image.tobytes() for _, image in first] == [image.tobytes() for _, image in second]
    assert [image.tobytes() for _, image in first] != [image.tobytes() for _, image in other]
    assert {(image.mode, image.size) for _, image in first} == {("RGB", (224, 224))}
    assert "shuffled" not in dict(draw_negatives(2, []))


def test_a_shuffled_photo_has_the_pixels_of_the_photo():
    photo = picture(2, 224, 224)
    shuffled = dict(draw_negatives(1, [photo]))["shuffled"]
    assert shuffled.tobytes() != photo.tobytes()
    assert np.sort(np.array(shuffled).ravel()).tolist() == np.sort(np.array(photo).ravel()).tolist()


def test_a_regression_finds_the_probabilities():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(4000, 3)) * [1, 5, 0.1] + 3
    numbers = numbers[(np.abs(numbers - 3) < [2, 10, 0.2]).all(axis=1)]
    expected = 1 / (1 + np.exp(2 - numbers @ [1, -0.2, 0]))
    is_true = rng.random(len(expected)) < expected
    found = fit_regression(numbers, is_true).probability(numbers)
    assert np.abs(found - expected).mean() < 0.03


def test_a_balanced_regression_does_not_depend_on_how_many_there_are_of_each_side():
    numbers = np.array([[0.0], [1], [2], [1], [2], [3]])
    is_true = np.array([False, False, False, True, True, True])
    rows = np.array([0, 1, 2, *[3, 4, 5] * 20])
    [even] = fit_regression(numbers, is_true, balanced=True).probability(np.array([[1.5]]))
    [uneven] = fit_regression(numbers[rows], is_true[rows], balanced=True).probability(np.array([[1.5]]))
    assert even == pytest.approx(0.5, abs=1e-3)
    assert uneven == pytest.approx(0.5, abs=0.02)
    [plain] = fit_regression(numbers[rows], is_true[rows]).probability(np.array([[1.5]]))
    assert plain > 0.9


def test_a_regression_of_separate_sides_stays_finite():
    numbers = np.array([[0.0, 1], [1, 1], [2, 1], [3, 1]])
    regression = fit_regression(numbers, np.array([False, False, True, True]))
    assert max(map(abs, regression.weights)) < 100
    assert regression.probability(numbers).round().tolist() == [0, 0, 1, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a tiny captioner, and photos with its own captions, some of them of other photos."""
    folder = tmp_path_factory.mktemp("calibration")
    model = tiny_model("dinov2", "llama", image_tokens="patches", pooled_in_front=True)
    model.generation_config.update(max_new_tokens=6, num_beams=1, do_sample=False)
    processor = tiny_processor(model.config)
    (folder / "photos").mkdir()
    photos = []
    for number in range(IMAGES):
        photos.append(folder / "photos" / f"{number}.png")
        picture(number, 20 + number, 30).point(lambda value, n=number: value * (n + 1) // IMAGES).save(photos[-1])
    captions = [caption.text or "none" for caption in Captioner(model, processor).caption(photos)]
    lines = ["image,caption,split"]
    for number, photo in enumerate(photos):
        text = captions[number if number % 3 else number - 1].replace('"', "").strip() or "none"
        for split in ("dev", "train"):
            name = photo.name if split == "dev" else f"t{photo.name}"
            lines.append(f'{name},"{text} number {number}",{split}')
            Image.open(photo).rotate(90).save(folder / "photos" / name) if split == "train" else None
    (folder / "photos" / "captions.csv").write_text("\n".join(lines) + "\n")
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    return folder


def command(run, *options: str) -> int:
    arguments = ["--checkpoint", run / "checkpoint", "--data.path", run / "photos", "--output-dir", run / "out"]
    return load_script("calibrate").main([*map(str, arguments), "--negatives", "2", "--right-share", "0.5", *options])


def test_the_command_writes_confidences_a_plot_and_the_card(run, monkeypatch, capsys):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(run / "cache"))
    assert command(run) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert sum(line.startswith("calibration error (ECE)") for line in printed.splitlines()) == 1
    report = json.loads((run / "out" / "calibration.json").read_text())
    assert report["images"] == IMAGES
    assert sum(count for _, _, count in report["bins"]) == IMAGES
    assert set(report["drawn_below_photos"]) == {
        *("uniform", "noise", "gradient", "text", "drawing", "shadows", "shuffled")
    }
    assert (run / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (run / "out").iterdir()) == ["calibration.json", "reliability.png"]
    confidence = Confidence.load(run / "checkpoint")
    assert confidence.fitted_on["right_share"] == 0.5
    assert confidence.measured == report
    card = (run / "checkpoint" / "README.md").read_text()
    assert "## Confidence" in card
    assert f"| {report['ece']:.3f} |" in card
    captioner = Captioner.from_pretrained(run / "checkpoint")
    [caption] = captioner.caption(run / "photos" / "3.png")
    assert 0 < caption.confidence < 1
    before = (run / "checkpoint" / CONFIDENCE_NAME).read_bytes()
    assert command(run) == 0
    assert (run / "checkpoint" / CONFIDENCE_NAME).read_bytes() == before


def test_mistakes_get_a_sentence(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(run / "cache"))
    for options, message in (
        (("--checkpoint", "no/where"), "confidences are saved in its folder"),
        (("--limit", "5"), "5 images are too few"),
        (("--right-share", "1.5"), "right_share must be above 0 and below 1"),
        (("--negatives", "1"), "negatives must be at least 2"),
    ):
        assert command(run, *options) == 2
        [line] = capsys.readouterr().err.strip().splitlines()[-1:]
        assert message in line
    (tmp_path / "calibration.json").write_text("mine")
    assert command(run, "--output-dir", str(tmp_path)) == 2
    assert (tmp_path / "calibration.json").read_text() == "mine"


def test_a_report_of_known_numbers():
    confidences = np.array([0.9, 0.8, 0.2, 0.1])
    is_right = np.array([True, True, False, False])
    report = CalibrationReport(
        confidences,
        is_right,
        np.array([3.0, 2.0, 1.0, 0.0]),
        np.array([0.05, 0.5]),
        np.array(["a", "b"]),
        -confidences,
    )
    found = report.to_dict()
    assert (found["auroc"], found["auroc_of_score"], found["right"]) == (1, 0, 0.5)
    assert found["half_gain"] == pytest.approx(2.5 / 1.5, abs=1e-4)
    assert found["ece"] == pytest.approx(0.15)
    assert found["drawn_below_photos"] == {"a": 1, "b": 0}
    assert found["risk_coverage"][2] == [0.5, 0, 2.5]
    assert draw_reliability(report).startswith(b"\x89PNG")
