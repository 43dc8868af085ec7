"""scripts/caption.py and scripts/demo.py, on a tiny random model."""

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
from vlm_caption.captioning.captioner import Captioner
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
    names = ["astronaut", "officer", "photographer"]
    paths = [str(photo), *(str(ROOT / "examples" / f"{name}.jpg") for name in names)]
    assert [line.split(": ")[0] for line in out] == paths


def test_json_is_one_object_a_line(run, photo):
    code, out, err = run(photo, ROOT / "examples" / "officer.jpg", "--format", "json")
    assert (code, err) == (0, [])
    rows = [json.loads(line) for line in out]
    assert [list(row) for row in rows] == [["image", "caption", "score"]] * 2
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
    assert err[-1].startswith("captions: 3/3")
    assert run(*pictures, "--output", output)[0] == 0
    assert output.read_text().splitlines() == expected


def test_a_picture_that_is_named_twice_is_captioned_once(run, photo):
    code, out, err = run(photo, Path(photo).parent, photo)
    assert (code, err, len(out)) == (0, [], 1)
    assert out[0].startswith(f"{photo}: ")


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
    assert err == ["caption.py: give pictures to caption, or --features FILE, and not both"]


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
    names = [f"{name}.jpg" for name in ("astronaut", "officer", "photographer")]
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
