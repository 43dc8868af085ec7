"""The files of an evaluation, and how the page looks in a browser."""

import csv
import json

import pytest
from browser import find_chromium, look_at
from coco_files import NO_JAVA, REFERENCES, RIGHT, SAME, write_files
from html_page import HOSTILE, Page
from tiny_models import picture

from vlm_caption.evaluation import evaluate as evaluation
from vlm_caption.evaluation.files import write_evaluation
from vlm_caption.evaluation.scoring import ScoringSettings

NAMES = ["results.json", "references.json", "per_image.csv", "report.html"]


def evaluate_files(results, references, images_dir=None, **options):
    return evaluation.evaluate_files(results, references, images_dir=images_dir, scoring=ScoringSettings(**options))


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path, RIGHT, REFERENCES)


@pytest.fixture
def with_pictures(tmp_path):
    """Two systems on twelve images with pictures, and with texts that no page should break at."""
    names = {}
    for number, image in enumerate(REFERENCES):
        names[image] = f"{number}.png"
        picture(number, 400, 200 + 40 * number).save(tmp_path / names[image])
    references = REFERENCES | {"image1": [HOSTILE, "a" * 200]}
    files = write_files(tmp_path, RIGHT | {"image0": HOSTILE, "image2": "b" * 200}, references, **names)
    other = tmp_path / "other"
    other.mkdir()
    write_files(other, SAME, references)
    return evaluate_files(*files, metrics=NO_JAVA, images_dir=tmp_path, compare_with=other)


class TestFiles:
    def test_can_be_scored_again(self, files, tmp_path):
        result = evaluate_files(*files, metrics=NO_JAVA)
        written = write_evaluation(tmp_path / "new" / "out", result)
        assert [path.name for path in written] == NAMES
        assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(NAMES)
        again = evaluate_files(written[0], written[1], metrics=NO_JAVA)
        assert again.metrics == result.metrics
        assert json.loads(written[0].read_text()) == json.loads(files[0].read_text())

    def test_table_has_a_line_for_every_image(self, with_pictures, tmp_path):
        write_evaluation(tmp_path / "out", with_pictures)
        with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image_id"] for row in rows] == list(REFERENCES)
        assert (rows[0]["caption"], rows[0]["reference_2"]) == (HOSTILE, REFERENCES["image0"][1])
        assert rows[0]["image"] == str(tmp_path / "0.png")
        for metric in ("cider", "bleu_4", "rouge_l"):
            values = with_pictures.scores.per_image[metric]
            assert [float(row[metric]) for row in rows] == pytest.approx(values.tolist(), abs=1e-6)

    def test_table_holds_no_formula(self, tmp_path):
        formula = '=HYPERLINK("http://evil.example")'
        files = write_files(tmp_path, RIGHT | {"image0": formula}, REFERENCES | {"image0": ["@SUM(A1)", "a dog"]})
        write_evaluation(tmp_path / "out", evaluate_files(*files, metrics=NO_JAVA))
        with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
            row = next(csv.DictReader(file))
        assert (row["caption"], row["reference_1"], row["reference_2"]) == ("'" + formula, "'@SUM(A1)", "a dog")
        assert json.loads((tmp_path / "out" / "results.json").read_text())[0]["caption"] == formula

    def test_names_pictures_that_are_whole_files(self, with_pictures, tmp_path):
        write_evaluation(tmp_path / "out", with_pictures)
        images = json.loads((tmp_path / "out" / "references.json").read_text())["images"]
        assert images[3] == {"id": "image3", "file_name": "3.png"}


class TestReport:
    def test_shows_numbers_notes_captions_and_references(self, with_pictures, tmp_path):
        write_evaluation(tmp_path, with_pictures)
        text = (tmp_path / "report.html").read_text()
        page = Page(text)
        assert {"script", "link", "iframe"}.isdisjoint(page.tags)
        for part in (HOSTILE, "CIDEr", "95 % interval", REFERENCES["image4"][1], "Wins", "Best", "Worst", "Random"):
            assert part in page.text
        low, high = with_pictures.intervals["cider"]
        assert f"{100 * low:.2f} to {100 * high:.2f}" in page.text
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")

    def test_without_pictures_has_captions_alone(self, files, tmp_path):
        write_evaluation(tmp_path, evaluate_files(*files, metrics=NO_JAVA))
        page = Page((tmp_path / "report.html").read_text())
        assert page.images == []
        assert page.tags.count("figure") == 6 + 6 + 8
        assert RIGHT["image3"] in page.text

    def test_of_a_single_image_has_no_best_and_no_worst(self, tmp_path):
        files = write_files(tmp_path, {"image0": RIGHT["image0"]}, {"image0": REFERENCES["image0"]})
        write_evaluation(tmp_path / "out", evaluate_files(*files, metrics=NO_JAVA))
        page = Page((tmp_path / "out" / "report.html").read_text())
        assert page.tags.count("figure") == 1
        assert "Random" in page.text
        assert "Best" not in page.text

    def test_says_of_a_picture_that_it_is_gone(self, with_pictures, tmp_path):
        for number in range(12):
            (tmp_path / f"{number}.png").unlink()
        write_evaluation(tmp_path, with_pictures)
        page = Page((tmp_path / "report.html").read_text())
        assert page.images == []
        assert "3.png" in page.text

    def test_says_what_was_left_out(self, files, tmp_path):
        captions = {image: text for image, text in RIGHT.items() if image != "image0"}
        results, references = write_files(tmp_path, captions, REFERENCES)
        write_evaluation(tmp_path / "out", evaluate_files(results, references, metrics=NO_JAVA, allow_missing=True))
        text = Page((tmp_path / "out" / "report.html").read_text()).text
        assert "Only the 11 images that have both a caption and references were scored" in text

    @pytest.mark.browser
    @pytest.mark.parametrize("width", [1280, 390])
    def test_looks_right_in_a_browser(self, with_pictures, tmp_path, width):
        find_chromium()
        write_evaluation(tmp_path / "out", with_pictures)
        found = look_at(tmp_path / "out" / "report.html", width, tmp_path)
        assert found["width"] == found["scroll_width"] == width
        assert found["beyond_edge"] == []
        assert (found["images"] > 20, found["broken_images"]) == (True, 0)
        assert found["smallest_text"] >= 12
        assert (tmp_path / f"{width}.png").stat().st_size > 10_000
