"""Several corpora at once: each of its own format, read as one."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import write_colours

from vlm_caption.config.sections import DataSection
from vlm_caption.core.errors import ConfigError, DataError
from vlm_caption.data.corpora import corpus_names, in_turn, share_evenly
from vlm_caption.data.opening import load_splits, open_data
from vlm_caption.data.sampler import Group, LengthBatchSampler
from vlm_caption.features.inputs import with_index


@pytest.fixture
def table(tmp_path):
    """A table with splits."""
    return str(write_colours(tmp_path / "table"))


@pytest.fixture
def texts(tmp_path):
    """Text files beside pictures, without splits; one picture has a name that the table has too."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train_red", *(f"photo{number}" for number in range(20))):
        Image.new("RGB", (32, 32), "green").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A photo called {name}.")
    return str(folder)


def test_each_corpus_has_its_own_format_and_splits_and_pictures(table, texts):
    corpora = open_data(DataSection(path=[table, texts], dev_share=0.2))
    assert corpora.format == "table, text_files"
    train, dev = corpora.load("train"), corpora.load("dev")
    assert len(train) + len(dev) == 16 + 21
    assert sorted(set(train["corpus"])) == sorted(set(dev["corpus"])) == ["table", "texts"]
    reds = {row["image"]: row["captions"] for rows in (train, dev) for row in rows if "train_red" in row["image"]}
    assert list(reds.values()) == [["red"], ["A photo called train_red."]]


def test_dev_images_come_in_turn_and_are_limited_evenly(table, texts):
    settings = DataSection(path=[table, texts], dev_share=0.5)
    _, dev = load_splits(open_data(settings), settings, eval_images=6)
    assert dev["corpus"] == ["table", "texts"] * 3


def test_a_corpus_may_lack_the_dev_split_and_not_the_training_split(table, tmp_path, caplog):
    other = tmp_path / "other" / "captions.csv"
    write_colours(other.parent)
    lines = other.read_text().splitlines()
    other.write_text("\n".join(line for line in lines if not line.endswith(",dev")))
    settings = DataSection(path=[table, str(other)])
    train, dev = load_splits(open_data(settings), settings, eval_images=100)
    assert (len(train), len(dev)) == (16, 8)
    assert f"{other} has no split 'dev'" in caplog.text
    other.write_text("\n".join(line for line in lines if not line.endswith(",train")))
    with pytest.raises(DataError, match=r"other.captions.csv: no image is in the split 'train'; .* dev"):
        load_splits(open_data(settings), settings, eval_images=100)
    with pytest.raises(DataError, match="no image is in the split 'test'"):
        open_data(settings).load("test")


def test_images_in_turn_leave_the_cached_corpora_whole(table, texts, caplog):
    settings = DataSection(path=[table, texts], dev_share=0.5)
    for _ in range(2):
        _, dev = load_splits(open_data(settings), settings, eval_images=6)
        assert with_index(dev)["index"] == [0, 1, 2, 3, 4, 5]
    assert "damaged" not in caplog.text


def test_problems_and_missing_pictures_of_all_are_reported(table, texts, tmp_path):
    (tmp_path / "table" / "train_red.png").unlink()
    (tmp_path / "texts" / "photo3.txt").write_text("")
    corpora = open_data(DataSection(path=[table, texts]))
    problems, missing = [], []
    corpora.load("train", on_problem=problems.append, on_missing=missing.append)
    assert [problem.where for problem in missing] == [str(tmp_path / "table" / "train_red.png")]
    assert len(problems) == len(list(corpora.problems())) == 1
    with pytest.raises(DataError, match="1 of 8 images are missing"):
        corpora.load("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0]}, "data.weights has 1 numbers, and data.path names 2 corpora: give one number for each"),
        ({"images": "photos"}, "data.images is of one corpus, and data.path names 2"),
        ({"features": "vectors.npy"}, "data.features is of one corpus, and data.path names 2"),
    ],
)
def test_settings_that_do_not_fit_several_corpora_are_refused(table, texts, settings, message):
    with pytest.raises(ConfigError, match=message):
        open_data(DataSection(path=[table, texts], **settings))


def test_names_are_different(tmp_path):
    folders = [tmp_path / "a" / "mine", tmp_path / "b" / "mine", tmp_path / "mine-2"]
    assert corpus_names(list(map(str, folders))) == ["mine", "mine-2", "mine-2-2"]


@given(st.lists(st.none() | st.integers(0, 50), min_size=1), st.integers(1, 200))
def test_a_limit_is_shared_as_evenly_as_sizes_allow(sizes, limit):
    shares = share_evenly(sizes, limit)
    known = [(size, share) for size, share in zip(sizes, shares, strict=True) if size is not None]
    assert sum(share for _, share in known) == min(limit, sum(size for size, _ in known))
    assert all(0 <= share <= size for size, share in known)
    partial = [share for size, share in known if share < size]
    largest = max((share for _, share in known), default=0)
    assert all(share >= largest - 1 for share in partial)


def test_a_single_corpus_stays_as_it_is(table):
    dataset = open_data(DataSection(path=[table])).load("dev")
    assert in_turn(dataset) is dataset
    assert dataset.column_names == ["image", "captions"]


class TestWeights:
    """How many images of each corpus an epoch has."""

    def sampler(self, *groups: Group) -> LengthBatchSampler:
        return LengthBatchSampler(groups, 4, 1, lambda rows: [1] * len(rows))

    @given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 4)), min_size=1, max_size=4))
    def test_every_image_comes_as_often_as_the_weight_says(self, sizes):
        groups = [Group.of_weight(rows, weight) for rows, weight in sizes]
        batches = list(self.sampler(*groups))
        assert len(batches) == len(self.sampler(*groups))
        drawn = list(itertools.chain(*batches))
        start = 0
        for group, (rows, weight) in zip(groups, sizes, strict=True):
            times = [drawn.count(row) for row in range(start, start + rows)]
            assert sum(times) == group.drawn == (max(1, round(weight * rows)) if rows else 0)
            assert not times or max(times) - min(times) <= 1
            start += rows
        assert len(drawn) == sum(group.drawn for group in groups)

    def test_an_epoch_has_other_images_of_a_part_than_the_one_before(self):
        batches = self.sampler(Group(10, 10), Group(100, 20))
        first = sorted(itertools.chain(*batches))
        batches.epoch = 1
        second = sorted(itertools.chain(*batches))
        assert first[:10] == second[:10] == list(range(10))
        assert first[10:] != second[10:]
        assert len(set(first[10:])) == len(set(second[10:])) == 20

    def test_one_group_of_all_has_the_order_of_a_number_of_rows(self):
        plain = LengthBatchSampler(103, 4, 1, lambda rows: [1] * len(rows), seed=3)
        grouped = LengthBatchSampler([Group(103, 103)], 4, 1, lambda rows: [1] * len(rows), seed=3)
        assert list(plain) == list(grouped)
