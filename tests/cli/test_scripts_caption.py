"""scripts/caption.py and scripts/demo.py, on a tiny random model."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import load_script
from PIL import Image

from vlm_caption import compose
from vlm_caption.captioning import captioner
from vlm_caption.captioning.caption_file import CaptionFile
from vlm_caption.captioning.captioner import Caption, Captioner
from vlm_caption.captioning.tables import read_table
from vlm_caption.cli.main import main as command_line
from vlm_caption.core.console import printable
from vlm_caption.data import load_captions
from vlm_caption.images.opening import open_image

ROOT = Path(__file__).resolve().parents[2]

VISION = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LANGUAGE = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "initializer_range": 0.5}


caption_script, demo_script = load_script("caption"), load_script("demo")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model, processor = compose(VISION, LANGUAGE)
    model.generation_config.update(max_new_tokens=4, num_beams=2, length_penalty=0.8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    return shutil.copy(ROOT / "examples" / "officer.jpg", tmp_path / "an officer.jpg")


@pytest.fixture
def run(checkpoint, capsys):
    """Calls caption.py: exit code, lines of stdout, lines of stderr."""

    def call(*arguments) -> tuple[int, list[str], list[str]]:
        argv = [str(argument) for argument in arguments]
        if "--checkpoint" not in argv:
            argv += ["--checkpoint", str(checkpoint)]
        try:
            code = caption_script.main(argv)
        except SystemExit as exit:  # argparse
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def test_one_picture_gives_its_caption_alone(run, photo, checkpoint):
    code, out, err = run(photo)
    assert (code, err) == (0, [])
    assert out == [printable(Captioner.from_pretrained(checkpoint).caption(photo)[0].text)]


def test_several_pictures_are_named(run, photo):
    code, out, err = run(photo, ROOT / "examples")
    assert (code, err) == (0, [])
    paths = [str(photo), *(str(path) for path in sorted((ROOT / "examples").glob("*.jpg")))]
    assert len(paths) > 2
    assert [line.split(": ")[0] for line in out] == paths


def test_json_is_one_object_a_line(run, photo):
    code, out, err = run(photo, ROOT / "examples" / "officer.jpg", "--format", "json")
    assert (code, err) == (0, [])
    rows = [json.loads(line) for line in out]
    assert [list(row) for row in rows] == [["image", "caption", "score", "confidence", "finished", "checkpoint"]] * 2
    assert rows[0]["image"] == str(photo)
    assert isinstance(rows[0]["caption"], str)
    assert rows[0]["score"] < 0


def test_a_job_that_was_stopped_goes_on_in_its_file(run, photo, tmp_path):
    pictures = [photo, *sorted((ROOT / "examples").glob("*.jpg"))]
    code, expected, _ = run(*pictures, "--format", "json", "--batch-size", "1")
    assert code == 0
    output = tmp_path / "captions.jsonl"
    output.write_text("\n".join(expected[:2]) + "\n" + expected[2][:9])  # a kill came here
    missing = tmp_path / "missing.jpg"
    code, out, err = run(*pictures[:2], missing, *pictures[2:], "--output", output, "--batch-size", "1")
    assert (code, out) == (1, [])
    assert output.read_text().splitlines() == expected
    assert err[0] == f"caption.py: {output} has 2 of these captions"
    assert err[1].startswith(f"caption.py: {missing}")
    left = len(pictures) - 2
    assert err[-1].startswith(f"captions: {left + 1}/{left + 1}")
    assert run(*pictures, "--output", output)[0] == 0
    assert output.read_text().splitlines() == expected


def test_a_picture_that_is_named_twice_is_captioned_once(run, photo):
    code, out, err = run(photo, Path(photo).parent, photo)
    assert (code, err, len(out)) == (0, [], 1)
    assert out[0].startswith(f"{photo}: ")


@pytest.mark.parametrize("options", [[], ["--sidecars"]])
def test_a_name_that_is_too_long_costs_no_other_picture(run, photo, options):
    code, out, [line, *_progress] = run("a" * 5000 + ".jpg", photo, *options)
    assert code == 1
    assert line.startswith("caption.py: aaa")
    assert len(out) == 1 if not options else Path(photo).with_suffix(".txt").exists()


def test_a_file_of_something_else_is_not_added_to(run, photo):
    code, out, [line] = run(photo, "--output", photo)
    assert (code, out) == (2, [])
    assert line == f"caption.py: {photo}: line 1 is no caption with its image: name another file for captions."


def test_the_settings_reach_the_model(run, photo):
    def caption(*settings) -> str:
        code, out, err = run(photo, "--format", "json", *settings)
        assert (code, err) == (0, [])  # num_beams 1 with the checkpoint's length_penalty: not a word of it
        return json.loads(out[0])["caption"]

    assert len(caption("--num-beams", "1", "--max-new-tokens", "1")) <= 1  # the tiny model writes bytes
    assert caption("--prompt", "A photo of") != caption()


def test_bad_pictures_are_reported_and_the_good_ones_captioned(run, photo, tmp_path):
    empty_folder, empty, text = tmp_path / "folder", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty_folder.mkdir()
    empty.touch()
    text.write_text("no picture")
    cut, huge = tmp_path / "cut.jpg", tmp_path / "huge.pgm"
    cut.write_bytes(Path(photo).read_bytes()[:9000])
    huge.write_bytes(b"P5 100000 100000 255\n")
    missing = tmp_path / "missing.jpg"
    bad = [missing, empty_folder, empty, text, cut, huge]

    other = shutil.copy(photo, tmp_path / "other.jpg")
    code, out, err = run(*bad[:3], photo, *bad[3:], other)
    assert code == 1
    assert [line.split(": ")[0] for line in out] == [str(photo), str(other)]
    assert sorted(line.split(": ")[1] for line in err) == sorted(map(str, bad))
    assert all(line.startswith("caption.py: ") for line in err)


def test_a_file_name_cannot_forge_a_line(run, photo, tmp_path):
    forged = shutil.copy(photo, tmp_path / "a\nb.jpg: a dog\x1b[2J.jpg")
    code, out, err = run(photo, forged, tmp_path / "none\ncaption.py: fine.jpg")
    assert (code, len(out), len(err)) == (1, 2, 1)
    assert out[1].startswith(f"{tmp_path}/a\\nb.jpg: a dog\\x1b[2J.jpg: ")
    assert err[0].startswith(f"caption.py: {tmp_path}/none\\ncaption.py: fine.jpg: ")


def test_the_installed_command_has_its_own_name_in_messages(capsys):
    assert command_line(["caption", "none.jpg"]) == 1
    assert capsys.readouterr().err == "vlm-caption caption: none.jpg: there is no such file\n"
    with pytest.raises(SystemExit):
        command_line(["captoin"])
    assert capsys.readouterr().err.startswith("vlm-caption: argument COMMAND: invalid choice: 'captoin'")


def test_what_is_refused_can_be_written_down(run, photo, tmp_path):
    empty, file = tmp_path / "empty.jpg", tmp_path / "bad.jsonl"
    empty.touch()
    code, out, err = run(tmp_path / "no folder", photo, empty, "--bad-images", file)
    assert (code, len(out), len(err)) == (1, 1, 2)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"file": str(tmp_path / "no folder"), "reason": "there is no such file"},
        {"file": str(empty), "reason": "the file is empty"},
    ]
    assert run(photo, "--bad-images", file)[0] == 0
    assert file.read_text() == ""


def test_the_limits_can_be_set(run, photo):
    for option in ("--max-pixels", "--max-bytes"):
        code, out, err = run(photo, option, "1000")
        assert (code, out, len(err)) == (1, [], 1)
        assert "1000" in err[0]


def test_bad_pictures_alone_need_no_model(run, tmp_path):
    code, out, err = run(tmp_path, "--checkpoint", "no such checkpoint")
    assert (code, out) == (1, [])
    assert len(err) == 1
    assert err[0].startswith(f"caption.py: {tmp_path}: the folder holds no pictures")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "/no/such/folder"], "There is no checkpoint '/no/such/folder'"),
        (["--num-beams", "0"], "argument --num-beams: give a whole number of at least 1, not '0'"),
        (["--max-new-tokens", "many"], "argument --max-new-tokens: give a whole number"),
        (["--max-new-tokens", "1000"], "exceed the 96 positions"),
        (["--batch-size", "-1"], "argument --batch-size: give a whole number"),
        (["--max-pixels", "0"], "argument --max-pixels: give a whole number"),
        (["--bad-images", "/no/such/folder/bad.jsonl"], "No such file or directory: '/no/such/folder/bad.jsonl'"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--beams", "3"], "unrecognized arguments: --beams 3"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(run, photo, arguments, message):
    code, out, err = run(photo, *arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("caption.py: ")
    assert message in err[0]


def test_no_picture_is_bad_usage(run):
    code, out, err = run()
    assert (code, out) == (2, [])
    assert err == ["caption.py: give pictures to caption, --features FILE or --config FILE, and only one of these"]


def test_an_empty_list_is_bad_usage(run, tmp_path):
    (tmp_path / "empty.txt").touch()
    code, out, err = run(f"@{tmp_path / 'empty.txt'}")
    assert (code, out, err) == (2, [], ["caption.py: There are no pictures to caption: the list is empty."])


def test_a_closed_pipe_ends_it_quietly(checkpoint, photo):
    command = [sys.executable, ROOT / "scripts" / "caption.py", "--checkpoint", checkpoint, "--batch-size", "1"]
    with subprocess.Popen(
        [*command, photo, ROOT / "examples"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline().startswith(f"{photo}: ")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_demo_captions_the_examples_and_writes_a_page(checkpoint, tmp_path, monkeypatch, capsys):
    load = Captioner.from_pretrained
    monkeypatch.setattr(Captioner, "from_pretrained", lambda: load(checkpoint))
    page = tmp_path / "page.html"
    assert demo_script.main(["--output", str(page)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    names = [path.name for path in sorted((ROOT / "examples").glob("*.jpg"))]
    *captions, last = captured.out.splitlines()
    assert [line.split(": ")[0] for line in captions] == names
    assert last == f"Page: {page}"
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == len(names)
    assert "DINOv2 ViT-S/14 and the language model is SmolLM2-135M-Instruct, not CLIP and GPT-2" in text

    assert demo_script.main(["--output", str(tmp_path / "none" / "page.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("demo.py: ")
    assert err.count("\n") == 1

    mine = tmp_path / "mine.txt"
    mine.write_text("My notes")
    assert demo_script.main(["--output", str(mine)]) == 2
    assert "mine.txt holds something else, which would be lost" in capsys.readouterr().err
    assert mine.read_text() == "My notes"


def test_the_default_checkpoint_stands_beside_the_scripts():
    assert captioner.DEFAULT_CHECKPOINT == ROOT / "checkpoints" / "embedded"


def test_the_examples_are_small_photos_with_three_captions_each():
    photos = sorted((ROOT / "examples").glob("*.jpg"))
    rows = [row for split in ("train", "dev") for row in load_captions(ROOT / "examples" / "captions.csv", split)]
    assert sorted(row["image"] for row in rows) == [str(photo) for photo in photos]
    assert all(len(set(row["captions"])) == 3 for row in rows)
    readme = (ROOT / "examples" / "README.md").read_text()
    for photo in photos:
        assert max(open_image(photo).size) <= 640
        assert photo.stat().st_size < 120_000
        assert f"`{photo.name}`" in readme
    with Image.open(photos[0]) as image:
        assert image.format == "JPEG"


class TestOutputs:
    def test_nothing_of_somebody_else_is_overwritten(self, run, photo, tmp_path):
        content = Path(photo).read_bytes()
        table = tmp_path / "table.jsonl"
        table.write_text('{"image": "a.jpg", "caption": "A dog.", "licence": "CC0"}')
        for options, message in (
            (["--bad-images", photo], f"--bad-images {photo} is read by the same command"),
            (["--bad-images", table], f"--bad-images {table} holds something else, which would be lost"),
            (["--output", table], f"{table}: line 1 is no caption with its image: name another file for captions."),
            (["--output", tmp_path / "x", "--bad-images", tmp_path / "x"], "is the file of --output too"),
            (["--output", photo, "--format", "csv"], f"--output {photo} is read by the same command"),
            (["--output", table, "--format", "csv"], f"--output {table} holds something else"),
            (["--output", "/dev/full"], "--output /dev/full is no regular file"),
            (["--output", tmp_path], f"--output {tmp_path} is no regular file"),
            (["--output", ""], "argument --output: give the name of a file"),
        ):
            code, out, err = run(photo, *options)
            assert (code, out, len(err)) == (2, [], 1)
            assert message in err[0]
        assert Path(photo).read_bytes() == content
        assert table.read_text() == '{"image": "a.jpg", "caption": "A dog.", "licence": "CC0"}'
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("name", ["c.csv", "c.parquet", "c.json"])
    def test_tables_resume_and_hold_every_caption_once(self, run, photo, tmp_path, name):
        output = tmp_path / name
        options = ["--output", output, *(["--format", "coco"] if name == "c.json" else [])]
        assert run(photo, *options)[0] == 0
        assert run(photo, ROOT / "examples", *options)[0] == 0
        entries = read_table(output, {"c.json": "coco"}.get(name, output.suffix[1:]))
        assert [Path(entry["image"]).name for entry in entries] == [
            "an officer.jpg",
            *(path.name for path in sorted((ROOT / "examples").glob("*.jpg"))),
        ]
        code, _out, err = run(photo, ROOT / "examples", *options, "--checkpoint", "/none is needed")
        assert (code, err) == (0, [f"caption.py: {output} has {len(entries)} of these captions"])
        assert [path.name for path in tmp_path.iterdir() if "c." in path.name] == [name]

    def test_a_kill_before_a_table_is_finished_loses_and_doubles_nothing(self, run, photo, tmp_path):
        output, kept = tmp_path / "c.csv", tmp_path / ".c.csv.unfinished.jsonl"
        pictures = [photo, *sorted((ROOT / "examples").glob("*.jpg"))]
        assert run(*pictures, "--output", output)[0] == 0
        whole = output.read_text()
        entries = read_table(output, "csv")
        lines = [json.dumps(entry) + "\n" for entry in entries]
        for written, unfinished in (([], lines[:2]), (entries, lines)):  # on the way, and between table and removal
            output.unlink()
            if written:
                output.write_text(whole)
            kept.write_text("".join(unfinished))
            assert run(*pictures, "--output", output)[0] == 0
            assert output.read_text() == whole
            assert not kept.exists()

    def test_a_resumed_job_knows_a_picture_however_its_path_is_spelled(self, run, photo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        output = tmp_path / "c.jsonl"
        assert run(photo, "--output", output)[0] == 0
        for spelling in (Path(photo).name, f"./../{tmp_path.name}/", "."):
            assert run(spelling, "--output", output)[2] == [f"caption.py: {output} has 1 of these captions"]

    def test_captions_of_another_checkpoint_are_not_mixed(self, run, photo, tmp_path):
        output = tmp_path / "c.jsonl"
        line = {"image": "a.jpg", "caption": "A dog.", "score": -1, "finished": True, "checkpoint": "sha256:0"}
        output.write_text(json.dumps(line) + "\n")
        code, _out, [error] = run(photo, "--output", output)
        assert code == 2
        assert f"{output} has captions of another checkpoint (sha256:0, and this one is sha256:" in error

    def test_names_that_are_no_text_are_read_by_every_reader(self, run, photo, tmp_path):
        named = tmp_path / "folder" / os.fsdecode(b"\xff\x1b[31m\n.jpg")
        named.parent.mkdir()
        shutil.copy(photo, named)
        for suffix in ("jsonl", "csv", "parquet"):
            for _ in range(2):
                assert run(named, "--output", tmp_path / f"c.{suffix}")[0] == 0
        [line] = (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()
        name = str(named.parent / "\\xff\x1b[31m\n.jpg")
        assert json.loads(line)["image"] == name
        assert "\\ud" not in line
        for suffix in ("csv", "parquet"):
            assert [entry["image"] for entry in read_table(tmp_path / f"c.{suffix}", suffix)] == [name]
        _code, [line], _err = run(named, "folder that is not there")
        assert line.startswith(f"{named.parent}/\\xff\\x1b[31m\\n.jpg: ")

    def test_sidecars_stand_beside_pictures_and_are_kept(self, run, photo, tmp_path):
        text = Path(photo).with_suffix(".txt")
        options = [photo, "--sidecars", "--prefix", "my, ", "--suffix", "!"]
        assert run(*options)[0] == 0
        caption = json.loads(run(photo, "--format", "json")[1][0])["caption"]
        assert text.read_text() == f"my, {caption}!\n"
        text.write_text("mine")
        assert run(*options)[2] == ["caption.py: the files beside the pictures have 1 of these captions"]
        assert text.read_text() == "mine"
        assert run(*options, "--append")[0] == 0
        assert text.read_text() == f"mine\nmy, {caption}!\n"
        assert run(*options, "--overwrite")[0] == 0
        assert text.read_text() == f"my, {caption}!\n"

    def test_a_repeated_command_appends_no_caption_twice(self, run, photo, tmp_path):
        options = [photo, "--sidecars", "--append", "--output", tmp_path / "kept.jsonl"]
        assert run(*options)[0] == 0
        text = Path(photo).with_suffix(".txt").read_text()
        assert run(*options)[0] == 0
        assert Path(photo).with_suffix(".txt").read_text() == text

    def test_pictures_that_share_a_sidecar_are_told(self, run, photo, tmp_path):
        with Image.open(photo) as image:
            image.save(tmp_path / "an officer.png")
        code, _out, err = run(tmp_path, "https://example.invalid/a.jpg", "--sidecars")
        assert code == 1
        assert err[0] == (
            f"caption.py: {tmp_path / 'an officer.png'}: an officer.txt is for the caption of {photo}: rename one of "
            "the two"
        )
        assert "there is no file on this computer to write a caption beside" in err[1]

    def test_a_read_only_folder_is_that_pictures_fault_alone(self, run, photo, tmp_path, monkeypatch):
        folder = tmp_path / "locked"
        folder.mkdir()
        locked = shutil.copy(photo, folder)
        monkeypatch.setattr("vlm_caption.captioning.beside.os.access", lambda path, mode: Path(path) != folder)
        code, _out, err = run(locked, photo, "--sidecars")
        assert code == 1
        assert err[0] == (f"caption.py: {locked}: an officer.txt cannot be written beside it: the folder is read-only")
        assert Path(photo).with_suffix(".txt").exists()

    def test_an_empty_caption_is_a_failure(self, run, photo, tmp_path, monkeypatch):
        empty = [Caption(str(photo), "", -1.0)]
        monkeypatch.setattr(Captioner, "caption_batches", lambda *args, **kwargs: iter([[empty]]))
        code, _out, [error, _progress] = run(photo, "--output", tmp_path / "c.jsonl")
        assert (code, (tmp_path / "c.jsonl").read_text()) == (1, "")
        assert f"{photo}: the model wrote an empty caption" in error

    def test_a_full_disk_is_named(self, run, photo, tmp_path, monkeypatch):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        output = tmp_path / "c.jsonl"
        assert run(ROOT / "examples" / "officer.jpg", "--output", output)[0] == 0
        before = output.read_bytes()
        monkeypatch.setattr(CaptionFile, "_write", lambda self, content: write(self, content) if content else None)
        code, _out, err = run(photo, "--output", output)
        assert (code, output.read_bytes()) == (2, before)
        assert err[-1] == f"caption.py: {output}: captions cannot be kept there (No space left on device)."


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_fault_of_one_picture_is_that_pictures_alone(run, photo, tmp_path, monkeypatch, error):
    def fail(source, *limits):
        if "officer.jpg" in str(source):
            raise error
        return open_image(source, *limits)

    monkeypatch.setattr("vlm_caption.captioning.batches.open_image", fail)
    code, out, err = run(photo, ROOT / "examples" / "astronaut.jpg")
    assert (code, len(out), len(err)) == (1, 1, 1)
    assert err[0].startswith(f"caption.py: {photo}: ")


class TestDecoding:
    def test_options_reach_the_model(self, run, photo):
        def captions(*options) -> list[str]:
            code, out, err = run(photo, "--format", "json", *options)
            assert (code, err) == (0, [])
            return [json.loads(line)["caption"] for line in out]

        assert len(captions("--num-captions", "3")) == 3
        sampled = captions("--num-captions", "4", "--sample", "--temperature", "3", "--seed", "5")
        assert len(set(sampled)) > 1
        assert captions("--num-captions", "4", "--sample", "--temperature", "3", "--seed", "5") == sampled
        long = captions("--min-new-tokens", "20", "--max-new-tokens", "20")
        assert len(long[0].split()) >= 1
        assert captions("--num-beams", "1", "--dtype", "bfloat16", "--device", "cpu")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--temperature", "2"], "--temperature needs --sample"),
            (["--sample", "--temperature", "0"], "argument --temperature: give a number above 0, not '0'"),
            (["--sample", "--top-p", "2"], "argument --top-p: give a number above 0 and at most 1, not '2'"),
            (["--repetition-penalty", "nan"], "argument --repetition-penalty: give a number, not 'nan'"),
            (["--num-captions", "3", "--num-beams", "2"], "3 captions of an image need at least 3 beams, or sampling"),
            (
                ["--question", "What?"],
                "was not trained on questions: leave it out, or give a --prompt with {question}",
            ),
            (["--device", "cuda:99"], "The device 'cuda:99' cannot be used: "),
            (["--device", "toaster"], "The device 'toaster' cannot be used: "),
            (["--prefix", "a"], "--prefix needs --sidecars or --xmp"),
            (["--format", "coco", "--num-captions", "2"], "--format coco has one caption for each picture"),
            (["--consensus", "3", "--num-captions", "4"], "consensus 3 writes too few captions to keep 4 of them"),
            (["--consensus-captions", "a.txt"], "--consensus-captions needs --consensus"),
            (["--consensus", "2"], "There is no document_frequencies.json beside the checkpoint"),
            (["--split", "dev"], "--split needs --config"),
            (["--stop", " "], "stop and ban take texts with at least one visible character"),
        ],
    )
    def test_what_cannot_be_used_is_one_sentence(self, run, photo, options, message):
        code, out, err = run(photo, *options)
        assert (code, out, len(err)) == (2, [], 1)
        assert message in err[0]


class TestSeveralPrompts:
    def test_give_a_line_each(self, run, photo, tmp_path):
        prompts = ["--prompt", "A photo of", "--prompt", "{question}", "--question", "What?", "--question", "Who?"]
        names = ["A photo of", "What?", "Who?"]
        code, out, err = run(photo, *prompts, "--format", "json")
        assert (code, err, [json.loads(line)["prompt"] for line in out]) == (0, [], names)
        code, out, _err = run(photo, *prompts, "--format", "csv")
        assert out[0] == "image,caption,score,confidence,finished,checkpoint,prompt"
        assert run(photo, *prompts, "--output", tmp_path / "c.parquet")[0] == 0
        entries = read_table(tmp_path / "c.parquet", "parquet")
        assert [entry["prompt"] for entry in entries] == names
        again = run(photo, *prompts, "--output", tmp_path / "c.parquet", "--checkpoint", "/none is needed")
        assert again[::2] == (0, [f"caption.py: {tmp_path / 'c.parquet'} has 1 of these captions"])

    def test_that_a_kill_has_cut_short_are_asked_again(self, run, photo, tmp_path):
        output = tmp_path / "c.jsonl"
        options = [photo, ROOT / "examples", "--prompt", "a", "--prompt", "b", "--output", output]
        assert run(*options)[0] == 0
        lines = output.read_text().splitlines(keepends=True)
        output.write_text("".join(lines[:3]))
        assert run(*options)[2][0] == f"caption.py: {output} has 1 of these captions"
        assert output.read_text().splitlines(keepends=True) == lines


class TestConfig:
    @pytest.fixture
    def config(self, photo, tmp_path):
        shutil.copy(photo, tmp_path / "other.jpg")
        rows = ["an officer.jpg,A man.,train", "none.jpg,Nothing.,train", "other.jpg,A man.,dev"]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
        (tmp_path / "config.yaml").write_text(f"data:\n  path: {tmp_path / 'captions.csv'}\n  prompt: A photo of\n")
        return tmp_path / "config.yaml"

    def test_the_pictures_of_its_corpus_are_captioned(self, run, photo, config):
        code, out, [error] = run("--config", config)
        other = str(config.with_name("other.jpg"))
        assert (code, [line.split(": ")[0] for line in out]) == (1, [str(photo), other])
        assert error.startswith("caption.py: ")
        assert "none.jpg: the image is missing" in error
        assert out == run(photo, other, "--prompt", "A photo of")[1]
        assert run("--config", config, "--split", "dev") == (0, out[1:], [])

    def test_a_corpus_without_a_good_record_says_why(self, run, config):
        config.with_name("captions.csv").write_text("image,caption\n/etc/passwd,A man.\n")
        code, _out, [error] = run("--config", config)
        assert (code, "row 2" in error) == (2, True)

    def test_what_it_cannot_give_is_one_sentence(self, run, config):
        code, _out, [error] = run("--config", config, "--split", "test")
        assert code == 2
        assert "no image is in the split 'test'" in error


class TestStandardOutput:
    @pytest.mark.parametrize("kind", ["parquet", "coco"])
    def test_gets_tables_at_the_end(self, run, photo, tmp_path, monkeypatch, kind):
        file = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(file, write_through=True))
        code, _out, _err = run(photo, "--format", kind, "--output", "-")
        (tmp_path / "table").write_bytes(file.getvalue())
        assert (code, [entry["image"] for entry in read_table(tmp_path / "table", kind)]) == (0, [str(photo)])

    def test_gets_captions_beside_other_outputs_where_it_is_named(self, run, photo):
        _code, [line], _err = run(photo, "--sidecars", "--output", "-")
        assert line == printable(Path(photo).with_suffix(".txt").read_text().removesuffix("\n"))


def test_descriptions_are_written_into_pictures(run, photo):
    pytest.importorskip("pyexiv2", reason="needs pyexiv2, of the extra xmp")
    from vlm_caption.images.description import read_description

    before = open_image(photo)
    assert run(photo, "--xmp", "--prefix", "my ")[0] == 0
    text = read_description(Path(photo).read_bytes())
    assert text.startswith("my ")
    assert open_image(photo).tobytes() == before.tobytes()
    assert run(photo, "--xmp")[2] == ["caption.py: the pictures have 1 of these captions"]


def test_descriptions_without_their_package_name_its_extra(run, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    code, _out, [error] = run(photo, "--xmp")
    assert (code, error) == (
        2,
        "caption.py: Metadata in pictures needs the package pyexiv2: pip install 'vlm-caption[xmp]'.",
    )


def test_a_consensus_keeps_one_caption(run, photo, tmp_path):
    (tmp_path / "captions.txt").write_text("a dog\na cat\n" * 9)
    options = ["--consensus", "4", "--consensus-captions", tmp_path / "captions.txt", "--sample", "--seed", "1"]
    code, [line], err = run(photo, *options, "--format", "json")
    assert (code, err) == (0, [])
    every = run(photo, "--num-captions", "4", "--sample", "--seed", "1", "--format", "json")[1]
    assert line in every


def test_lists_and_standard_input_name_pictures(run, photo, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text(f"{photo}\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(photo) + b"\0")))
    expected = run(photo)[1]
    assert run(f"@{tmp_path / 'list.txt'}")[1] == expected
    assert run("-")[1] == expected


def test_an_empty_argument_is_bad_usage(run):
    code, out, [error] = run("")
    assert (code, out) == (2, [])
    assert error.startswith("caption.py: An argument is empty, and names no picture")
