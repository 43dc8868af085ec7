"""Captions that actors of Ray write are those that one process writes; kill_ray.py kills more of them by hand."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
from tiny_models import picture, save_checkpoint

from vlm_caption import Captioner, ImageError
from vlm_caption.captioning.inputs import find_pictures
from vlm_caption.cli.main import main as command_line
from vlm_caption.scale import actors
from vlm_caption.scale.actors import CaptionActor, CaptionerSource, Deaths, Work, join_questions, split_question

PICTURES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and pictures beside it, in a zip archive too. One of them is bad."""
    folder = tmp_path_factory.mktemp("ray")
    save_checkpoint(folder / "checkpoint", pictures=0)
    (folder / "photos").mkdir()
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for number in range(PICTURES):
            path = folder / "photos" / f"{number:02}.png"
            picture(number).save(path)
            archive.write(path, path.name)
    (folder / "photos" / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def workplace(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)  # an actor changes the folder
    monkeypatch.setattr(actors.tempfile, "gettempdir", lambda: str(tmp_path))
    return folder


def batches_of(names, size: int = 2):
    found = find_pictures(names, on_error=lambda error: pytest.fail(str(error)))
    return [found[start : start + size] for start in range(0, len(found), size)]


def block_of(batches, questions=None) -> dict:
    questions = questions or [None] * len(batches)
    work = [pickle.dumps(Work(batch, own)) for batch, own in zip(batches, questions, strict=True)]
    return {"number": np.arange(len(work)), "work": work}


def actor(folder, **settings) -> CaptionActor:
    source = CaptionerSource("checkpoint", "cpu", None)
    return CaptionActor(source, 1, True, str(folder), "job", settings)


def plain(results) -> list:
    """Results in a form that can be compared."""
    return [[str(each) if isinstance(each, ImageError) else each for each in batch] for batch in results]


@pytest.mark.parametrize("names", [["photos"], ["photos.zip"]], ids=["files", "an archive"])
def test_an_actor_writes_the_captions_of_a_captioner(workplace, names):
    expected = Captioner.from_pretrained("checkpoint", "cpu").caption_batches(batches_of(names))
    captioned = actor(workplace)(block_of(batches_of(names)))
    assert captioned["number"] == list(range(PICTURES // 2))
    assert plain(map(pickle.loads, captioned["results"])) == plain(expected)


def test_an_actor_asks_the_question_of_each_picture(workplace):
    batches = [["photos/00.png", "photos/01.png"], ["photos/02.png"]]
    settings = {"prompt": "Q: {question} A:"}
    expected = Captioner.from_pretrained("checkpoint", "cpu").caption_batches(
        batches, question=["What?", ["Who?", "Where?"], "Why?"], **settings
    )
    block = block_of(batches, [["What?", ["Who?", "Where?"]], ["Why?"]])
    assert plain(map(pickle.loads, actor(workplace, **settings)(block)["results"])) == plain(expected)


def test_a_batch_that_ends_process_after_process_is_given_up(workplace):
    deaths = Deaths("job")
    for _ in range(actors.MOST_DEATHS):
        deaths.begin(1)
    deaths.begin(2)
    captioned = actor(workplace)(block_of([["photos/00.png"], ["photos/01.png"], ["photos/02.png"]]))
    first, second, third = map(pickle.loads, captioned["results"])
    assert [caption.image for [caption] in (*first, *third)] == ["photos/00.png", "photos/02.png"]
    assert [(error.source, "--batch-size" in error.reason) for error in second] == [("photos/01.png", True)]
    assert [deaths.count(number) for number in range(3)] == [0, actors.MOST_DEATHS, 0]
    deaths.clear()
    assert deaths.count(1) == 0


def test_an_actor_that_cannot_load_the_captioner_says_so(workplace):
    broken = CaptionActor(CaptionerSource("nowhere", "cpu", None), 1, True, str(workplace), "job", {})
    for error in map(pickle.loads, broken(block_of([["photos/00.png"], ["photos/01.png"]]))["results"]):
        assert isinstance(error, RuntimeError)
        assert "nowhere" in str(error)


@pytest.mark.parametrize(
    "question", [None, "What?", ["a", "b", "c"], [["a", "b"], "c", "d"]], ids=["none", "one", "each", "several"]
)
def test_questions_are_split_and_joined(question):
    assert join_questions(list(split_question(question, [2, 1]))) == question


@pytest.mark.parametrize("count", [2, 4])
def test_there_are_as_many_questions_as_pictures(count):
    with pytest.raises(ValueError, match="not as many questions"):
        list(split_question(["What?"] * count, [2, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "vectors.npy", "--engine", "ray"], "--features has none"),
        (["--actors", "2", "photos"], "--actors needs --engine ray"),
        (["--actor-threads", "2", "photos"], "--actor-threads needs --engine ray"),
        (["--engine", "ray", "--device", "cuda:1", "photos"], "take --device cuda"),
    ],
    ids=["vectors", "actors", "threads", "device"],
)
def test_what_does_not_go_with_ray_is_refused(workplace, capsys, options, message):
    pytest.importorskip("ray")
    try:
        code = command_line(["caption", "--checkpoint", "checkpoint", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_missing_ray_is_named_with_its_extra(workplace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command_line(["caption", "--checkpoint", "checkpoint", "--engine", "ray", "photos"]) == 2
    assert "pip install 'vlm-caption[ray]'" in capsys.readouterr().err


@pytest.mark.ray
def test_the_command_writes_the_same_file_with_ray(workplace, tmp_path, capsys, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # otherwise its processes wait for all other tests
    outputs = [tmp_path / "process.csv", tmp_path / "ray.csv"]
    options = ["--checkpoint", "checkpoint", "--batch-size", "2", "--sample", "--seed", "3", "photos", "photos.zip"]
    codes = [
        command_line(["caption", *options, "--output", str(output), *engine])
        for output, engine in zip(outputs, [[], ["--engine", "ray", "--actors", "2"]], strict=True)
    ]
    assert codes == [1, 1]
    assert not ray.is_initialized()
    process, with_ray = (output.read_bytes() for output in outputs)
    assert with_ray == process
    complaints = capsys.readouterr().err
    assert complaints.count("05.png") == 2
    assert "ray" not in complaints.replace("photos.zip", "").lower()
