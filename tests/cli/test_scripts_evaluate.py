"""scripts/evaluate.py: what it prints, writes and refuses."""

import json

import pytest
from coco_files import REFERENCES, RIGHT, SAME, write_files
from commands import load_script
from tiny_models import tiny_model, tiny_processor
from tiny_runs import write_colours

from vlm_caption import Captioner
from vlm_caption.captioning.caption_file import CaptionFile
from vlm_caption.evaluation.captions import UNFINISHED_NAME
from vlm_caption.hub.facts import record_training
from vlm_caption.metrics import COCO_METRICS


@pytest.fixture(scope="module")
def command():
    """`main` of scripts/evaluate.py."""
    return load_script("evaluate").main


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")  # no Java
    monkeypatch.chdir(tmp_path)  # where the folder `evaluation` goes


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny_model("dinov2")
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(tmp_path / "checkpoint")
    tiny_processor(model.config).save_pretrained(tmp_path / "checkpoint")
    return "checkpoint"


@pytest.fixture
def options(checkpoint, tmp_path):
    write_colours(tmp_path)
    return ["--checkpoint", checkpoint, "--data.path", "captions.csv", "--limit", "3"]


def move_to_a_run(tmp_path, folder, data):
    """Moves the checkpoint into a folder of the run `run`, which was trained with these data settings."""
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "checkpoint").rename(tmp_path / folder)
    (tmp_path / "run" / "run_config.yaml").write_text(f"data: {data}\n")


def entry(image="image0", caption="a dog"):
    return {"image_id": image, "caption": caption}


class TestOfACheckpoint:
    def test_prints_a_table_and_captions_and_writes_four_files(self, command, options, tmp_path, capsys):
        assert command([*options, "--captions", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "3 images of captions.csv, dev, captions of checkpoint (max_new_tokens 4)"
        table = {line.split()[0] for line in lines}
        assert {"BLEU-4", "ROUGE-L", "CIDEr", "CIDEr,", "distinct-1", "loss,", "vocabulary,"} <= table
        assert "not computed: METEOR: METEOR needs java, and there is none on the PATH" in lines
        shown = [line for line in lines if "[reference: " in line]
        assert [line.split(":")[0] for line in shown] == ["  dev_cyan.png", "  dev_magenta.png"]
        names = {path.name for path in (tmp_path / "evaluation").iterdir()}
        assert names == {"results.json", "references.json", "per_image.csv", "report.html"}

    def test_json_ends_the_output_with_one_object(self, command, options, capsys):
        assert command([*options, "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(COCO_METRICS) <= set(found)
        assert found["spice"] is found["meteor"] is found["clip_score"] is None
        assert {"spice", "meteor", "clip_score"} <= set(found["not_computed"])
        assert set(found["intervals"]) >= {"bleu_1", "bleu_4", "rouge_l", "cider", "mean_length", "unseen"}
        assert found["loss"] > 0
        assert found["shuffled_loss"] > 0
        numbers = {"distinct_1", "distinct_2", "vocabulary", "mean_length", "unseen", "repeated_4grams"}
        assert all(isinstance(found[name], int | float) for name in numbers)

    def test_the_card_of_a_checkpoint_gets_the_scores_and_that_of_the_shipped_one_stays(
        self, command, options, tmp_path, monkeypatch
    ):
        options = options[:-2]  # without a limit
        card = tmp_path / "checkpoint" / "README.md"
        with monkeypatch.context() as patched:
            patched.setattr("vlm_caption.cli.evaluate.DEFAULT_CHECKPOINT", tmp_path / "checkpoint")
            assert command(options) == 0
        assert not card.exists()
        assert command(options) == 0
        assert "CIDEr" in card.read_text()

    def test_what_it_writes_it_can_score(self, command, options, capsys):
        assert command([*options, "--json"]) == 0
        first = json.loads(capsys.readouterr().out.splitlines()[-1])
        files = ["--results", "evaluation/results.json", "--references", "evaluation/references.json"]
        code = command([*files, "--images", ".", "--compare", "evaluation", "--output-dir", "again", "--json"])
        captured = capsys.readouterr()
        assert code == 0
        again = json.loads(captured.out.splitlines()[-1])
        assert [again[metric] for metric in COCO_METRICS] == [first[metric] for metric in COCO_METRICS]
        assert again["comparison"]["ties"] == 3

    def test_tells_the_settings_of_the_checkpoint(self, command, options, capsys):
        assert command([*options, "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["generation"] == {"max_new_tokens": 4}

    def test_takes_data_and_generation_from_a_config_and_the_command_line(self, command, options, tmp_path, capsys):
        (tmp_path / "run.yaml").write_text(
            "data: {path: captions.csv, dev_split: train, limit: 2}\ngeneration: {num_beams: 2, max_new_tokens: 3}\n"
        )
        assert command(["--checkpoint", "checkpoint", "--config", "run.yaml", "--max-new-tokens", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (found["data"], found["images"]) == ("captions.csv, train", 2)
        assert found["generation"] == {"max_new_tokens": 2, "num_beams": 2}

    @pytest.mark.parametrize(
        "folder", ["run", "run/checkpoint-8", "run/stage-1-align", "run/stage-1-align/checkpoint-8"]
    )
    def test_a_run_is_scored_on_its_own_data(self, command, options, tmp_path, folder, capsys):
        move_to_a_run(tmp_path, folder, "{path: captions.csv, dev_split: train, limit: 2, on_bad_image: skip}")
        (tmp_path / "train_red.png").write_bytes(b"no picture")
        changes = ["--max-bad-share", "0.5", "--json"]
        assert command(["--checkpoint", folder, *changes]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (found["data"], found["images"]) == ("captions.csv, train", 1)
        assert [bad["file"] for bad in found["bad_images"]] == ["train_red.png"]
        assert command(["--checkpoint", folder, *changes, "--split", "dev", "--limit", "3"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (found["data"], found["images"]) == ("captions.csv, dev", 3)

    @pytest.mark.parametrize("settings", ["{path: mine.csv, dev_split: train, limit: 2}", "{pathh: mine.csv}"])
    def test_data_from_another_place_is_read_without_the_settings_of_the_run(
        self, command, options, tmp_path, settings, capsys
    ):
        move_to_a_run(tmp_path, "run", settings)
        assert command(["--checkpoint", "run", "--data.path", "captions.csv", "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (found["data"], found["images"]) == ("captions.csv, dev", 8)

    def test_captions_are_cut_as_in_training_unless_that_is_said(self, command, options, tmp_path, capsys):
        def loss(*changes: str) -> float:
            assert command([*options, "--json", *changes]) == 0
            return json.loads(capsys.readouterr().out.splitlines()[-1])["loss"]

        model = Captioner.from_pretrained("checkpoint", device="cpu").model
        usual, short, shorter = loss(), loss("--max-caption-tokens", "2"), loss("--max-caption-tokens", "1")
        assert len({usual, short, shorter}) == 3
        record_training(model, tmp_path / "checkpoint", {"max_caption_tokens": 2})
        (tmp_path / "run.yaml").write_text("data: {max_caption_tokens: 1}\n")
        assert loss() == short
        assert loss("--config", "run.yaml") == shorter
        assert loss("--config", "run.yaml", "--max-caption-tokens", "64") == usual
        record_training(model, tmp_path / "checkpoint", {})  # of an earlier version
        assert loss() == usual

    def test_an_error_of_the_data_is_not_one_of_the_output_folder(self, command, options, monkeypatch, capsys):
        def fail(*args, **kwargs):
            raise PermissionError(13, "Permission denied", "captions.csv")

        monkeypatch.setattr("vlm_caption.data.opening.open_data", fail)
        assert command(options) == 2
        assert capsys.readouterr().err == "evaluate.py: [Errno 13] Permission denied: 'captions.csv'\n"

    def test_a_wrong_number_of_captions_is_refused_before_the_work(self, command, options, capsys):
        with pytest.raises(SystemExit) as caught:
            command([*options, "--captions", "-1"])
        assert caught.value.code == 2
        assert (
            capsys.readouterr().err == "evaluate.py: argument --captions: give a whole number, 0 or more, not '-1'\n"
        )

    def test_a_stopped_evaluation_says_how_to_go_on(self, command, options, tmp_path, monkeypatch, capsys):
        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        original = CaptionFile.add_entries
        monkeypatch.setattr(CaptionFile, "add_entries", stop)
        assert command(options) == 130
        assert "the same command goes on from the captions already written" in capsys.readouterr().err
        assert (tmp_path / "evaluation" / UNFINISHED_NAME).exists()
        monkeypatch.setattr(CaptionFile, "add_entries", original)
        assert command(options) == 0
        assert not (tmp_path / "evaluation" / UNFINISHED_NAME).exists()

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            (["--data.path", "nowhere"], "nowhere: there is no such file or folder"),
            (["--split", "tset"], "no image is in the split 'tset'"),
            (["--caption-column", "title"], "there is no caption column: looked for title and found image, caption"),
            (["--chat", "true"], "data.chat is true, and the checkpoint checkpoint was trained with false: leave"),
            (["--question-column", "ask"], "data.question_column is 'ask', and data.prompt asks no question: write"),
            (["--dev-share", "2"], "data.dev_share must be at least 0 and below 1, and 2.0 is not."),
            (["--checkpoint", "no/where"], "'no/where'"),
            (["--num-beams", "0"], "generation.num_beams must be above 0, and 0 is not."),
            (["--num-beams", "two"], "generation.num_beams must be int|null, and 'two' is not."),
            (["--num-baems", "2"], "there is no option '--num-baems'; did you mean '--num-beams'?"),
            (["--config", "none.yaml"], "none.yaml: the config cannot be read"),
            (["--compare", "none.json"], "none.json: the file cannot be read"),
            (["--output-dir", "captions.csv/out"], "--output-dir: there is no folder captions.csv"),
        ],
    )
    def test_what_cannot_be_used_ends_in_a_sentence(self, command, options, changes, complaint, capsys):
        assert command([*options, *changes]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("evaluate.py: ")
        assert complaint in error


class TestOfFiles:
    def test_scores_them(self, command, tmp_path, capsys):
        write_files(tmp_path, RIGHT, REFERENCES)
        assert command(["--results", "results.json", "--references", "references.json", "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["bleu_4"] == pytest.approx(1)
        assert found["loss"] is found["unseen"] is None
        assert found["intervals"]["cider"][0] <= found["cider"] <= found["intervals"]["cider"][1]

    def test_calls_out_captions_that_ignore_their_images(self, command, tmp_path, capsys):
        write_files(tmp_path, SAME, REFERENCES)
        assert command(["--results", "results.json", "--references", "references.json"]) == 0
        assert "Note: Nothing shows that the captions depend on the images" in capsys.readouterr().out
        assert "Nothing shows that the captions" in (tmp_path / "evaluation" / "report.html").read_text()

    def test_scores_the_intersection_and_says_so_everywhere(self, command, tmp_path, capsys):
        captions = {image: text for image, text in RIGHT.items() if image != "image3"} | {"more": "a dog"}
        write_files(tmp_path, captions, REFERENCES)
        files = ["--results", "results.json", "--references", "references.json", "--json"]
        assert command([*files, "--allow-missing"]) == 0
        out = capsys.readouterr().out
        sentence = "Only the 11 images that have both a caption and references were scored"
        assert f"Note: {sentence}" in out
        found = json.loads(out.splitlines()[-1])
        assert (found["images"], found["missing"], found["extra"]) == (11, 1, 1)
        assert found["notes"][0].startswith(sentence)
        assert sentence in (tmp_path / "evaluation" / "report.html").read_text()

    def test_empty_captions_are_scored_and_told(self, command, tmp_path, capsys):
        write_files(tmp_path, dict.fromkeys(REFERENCES, " "), REFERENCES)
        options = ["--results", "results.json", "--references", "references.json", "--compare", "results.json"]
        assert command([*options, "--json"]) == 0
        out = capsys.readouterr().out
        sentence = "Note: 12 captions of results.json are empty, image id image0, image1, image2, …."
        assert out.count(sentence) == 2
        assert json.loads(out.splitlines()[-1])["cider"] == 0

    @pytest.mark.parametrize(
        ("results", "complaint"),
        [
            ([entry(image) for image in list(REFERENCES)[2:]], "2 images have no caption, id 'image0', 'image1'"),
            ([*map(entry, REFERENCES), entry("x")], "1 captions have no references, image id 'x'"),
            (
                [*map(entry, REFERENCES), entry("image1")],
                "1 captions of one image: keep one an image, image id 'image1'",
            ),
            ([entry(image, 5) for image in REFERENCES], "12 captions missing or no text, image id 'image0'"),
            ({"a": 1}, "expected a list of entries with image_id and caption"),
            (None, "results.json: the file cannot be read"),
            ("[" * 100_000, "results.json: this is not JSON"),
            ("[" + "9" * 10_000 + "]", "results.json: this is not JSON"),
        ],
    )
    def test_captions_that_cannot_be_scored_get_a_sentence(self, command, tmp_path, results, complaint, capsys):
        write_files(tmp_path, RIGHT, REFERENCES)
        if results is None:
            (tmp_path / "results.json").unlink()
        else:
            (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
        assert command(["--results", "results.json", "--references", "references.json"]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith("evaluate.py: ")
        assert complaint in error

    def test_captions_that_are_no_valid_text_are_scored(self, command, tmp_path, capsys):
        write_files(tmp_path, RIGHT | {"image0": "\ud800 \x1b[31m dog"}, REFERENCES)
        assert command(["--results", "results.json", "--references", "references.json"]) == 0
        assert "  image0: \\ud800 \\x1b[31m dog  [reference: " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("annotations", "complaint"),
        [
            ({"images": [{"id": 1}], "annotations": []}, "1 images without references, id 1"),
            ({"images": [{"id": 1}] * 2, "annotations": []}, "1 images listed more than once, id 1"),
            ({"images": [], "annotations": [entry(1)]}, "1 annotations of images that are not listed, image id 1"),
            ({"images": [], "annotations": []}, "there are no images"),
            ([], "expected an object with the lists images and annotations, found an empty list"),
        ],
    )
    def test_references_that_cannot_be_used_get_a_sentence(self, command, tmp_path, annotations, complaint, capsys):
        write_files(tmp_path, RIGHT, REFERENCES)
        (tmp_path / "references.json").write_text(json.dumps(annotations))
        assert command(["--results", "results.json", "--references", "references.json"]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert "references.json: " in error
        assert complaint in error

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--results", "results.json"], "--results and --references go together"),
            ([], "say what to score: --results and --references, or --data.path of captioned photos"),
        ],
    )
    def test_what_is_missing_is_said(self, command, options, complaint, capsys):
        with pytest.raises(SystemExit) as caught:
            command(options)
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"evaluate.py: {complaint}\n"

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--output-dir", "."], "--output-dir results.json is read by the same command"),
            (["--output-dir", "out", "--compare", "out"], "--output-dir out/results.json is read by the same command"),
            (["--output-dir", "mine"], "--output-dir mine/report.html holds something else, which would be lost"),
        ],
    )
    def test_nothing_of_somebody_else_is_overwritten(self, command, tmp_path, options, named, capsys):
        write_files(tmp_path, RIGHT, REFERENCES)
        for folder in ("mine", "out"):
            (tmp_path / folder).mkdir()
        (tmp_path / "mine" / "report.html").write_text("My notes")
        write_files(tmp_path / "out", SAME, REFERENCES)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
        assert command(["--results", "results.json", "--references", "references.json", *options]) == 2
        assert named in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
