"""Vectors in place of pictures: the files they come in, and the tables of captions that belong to them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from vlm_caption.data import DataError, load_captions, open_corpus, open_vectors

ROWS, TOKENS, WIDTH = 5, 3, 4


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def write(path: Path, array: np.ndarray, type: pa.DataType | None = None) -> Path:
    """Writes an array as the path's ending says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".safetensors":
        save_file({"vectors": torch.from_numpy(array)}, path)
    else:
        pq.write_table(pa.table({"vector": pa.array(array.tolist(), type)}), path, row_group_size=2)
    return path


def write_jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def captions(count: int, **columns: list) -> list[dict]:
    return [
        {"caption": f"Thing {i}.", "split": "train", **{name: values[i] for name, values in columns.items()}}
        for i in range(count)
    ]


class TestFiles:
    @pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet"])
    @pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS, TOKENS, WIDTH)])
    def test_one_array_is_a_vector_or_a_sequence_for_each_row(self, tmp_path, name, shape):
        array = numbers(*shape)
        vectors = open_vectors(write(tmp_path / name, array))
        wanted = torch.from_numpy(array).reshape(ROWS, -1, WIDTH)
        assert vectors.shape == tuple(wanted.shape)
        assert torch.equal(vectors[[4, 0]], wanted[[4, 0]])
        assert torch.equal(vectors[1:4], wanted[1:4])
        assert vectors.name(3) == "3"

    @pytest.mark.parametrize(
        "type",
        [
            pa.list_(pa.list_(pa.float64())),
            pa.large_list(pa.large_list(pa.float32())),
            pa.list_(pa.list_(pa.float32(), WIDTH), TOKENS),
            pa.list_(pa.list_(pa.float16(), WIDTH)),
        ],
        ids=str,
    )
    def test_parquet_has_lists_of_every_kind(self, tmp_path, type):
        array = numbers(ROWS, TOKENS, WIDTH).astype(np.float16)  # exact in all of them
        vectors = open_vectors(write(tmp_path / "a.parquet", array, type))
        assert torch.equal(vectors[:], torch.from_numpy(array).float())

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
    def test_numbers_of_every_width_become_float32(self, tmp_path, dtype):
        array = (10 * numbers(ROWS, WIDTH)).astype(dtype)
        for name in ("a.npy", "a.safetensors"):
            read = open_vectors(write(tmp_path / name, array))[:]
            assert read.dtype == torch.float32
            assert torch.equal(read[:, 0], torch.from_numpy(array).float())

    def test_bfloat16_is_read_too(self, tmp_path):
        tensor = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)
        save_file({"x": tensor}, tmp_path / "a.safetensors")
        assert torch.equal(open_vectors(tmp_path / "a.safetensors")[:][:, 0], tensor.float())

    @pytest.mark.parametrize("shape", [(WIDTH,), (TOKENS, WIDTH)])
    def test_safetensors_may_have_a_tensor_for_each_id(self, tmp_path, shape):
        tensors = {name: torch.randn(*shape) for name in ("C/C=C/C", "ethanol")}
        save_file(tensors, tmp_path / "a.safetensors")
        vectors = open_vectors(tmp_path / "a.safetensors")
        assert vectors.shape == (2, *(1, *shape)[-2:])
        row = vectors.find("C/C=C/C")
        assert vectors.name(row) == "C/C=C/C"
        assert torch.equal(vectors[[row]][0], tensors["C/C=C/C"].reshape(-1, WIDTH))
        assert vectors.find("water") is None

    def test_a_selection_has_the_rows_of_its_names_in_their_order(self, tmp_path):
        array = numbers(ROWS, WIDTH)
        chosen = open_vectors(write(tmp_path / "a.npy", array)).select(["3", "1"])
        assert chosen.shape == (2, 1, WIDTH)
        assert torch.equal(chosen[:][:, 0], torch.from_numpy(array[[3, 1]]))
        assert chosen.name(0) == "3"

    def test_a_file_larger_than_memory_is_never_read_as_a_whole(self, tmp_path):
        rows, width = 1 << 24, 1 << 14  # 1 TiB, on disk a hole
        path = tmp_path / "a.npy"
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
            )
            file.truncate(file.tell() + rows * width * 4)
        vectors = open_vectors(path)
        assert vectors.select([str(rows - 1)]).shape == (1, 1, width)


class TestBadFiles:
    @pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_number_that_is_not_finite_is_refused_with_its_row(self, tmp_path, name, value):
        array = numbers(ROWS, WIDTH)
        array[3, 1] = value
        vectors = open_vectors(write(tmp_path / name, array))
        assert len(vectors[:3]) == 3
        with pytest.raises(DataError, match=rf"{name}, row 3: a number is not finite"):
            vectors.select(["0", "3"])

    def test_a_number_too_large_for_float32_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"row 0: a number is not finite \(NaN, or infinite in float32\)"):
            open_vectors(write(tmp_path / "a.npy", np.full((1, 2), 1e300)))[:]

    @pytest.mark.parametrize("shape", [(), (ROWS,), (ROWS, 2, 2, 2), (0, WIDTH), (ROWS, 0)])
    def test_other_shapes_are_refused(self, tmp_path, shape):
        with pytest.raises(DataError, match=r"a\.npy: it .*of the shape|a\.npy: it has the shape \["):
            open_vectors(write(tmp_path / "a.npy", np.zeros(shape, np.float32)))
        if len(shape) > 1:
            with pytest.raises(DataError, match=r"a\.safetensors: .*the shape \["):
                open_vectors(write(tmp_path / "a.safetensors", np.zeros(shape, np.float32)))

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.array([["a", "b"]]), "this is no array of numbers"),
            (np.array([[1, None]], dtype=object), "this is no array of numbers"),
            (np.zeros((2, 2), dtype=">f4"), "this is no array of numbers"),
            (np.zeros((2, 2), dtype=np.complex64), "its numbers are complex"),
        ],
    )
    def test_an_npy_of_something_else_is_refused(self, tmp_path, array, reason):
        with pytest.raises(DataError, match=reason):
            open_vectors(write(tmp_path / "a.npy", array))

    @pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet"])
    @pytest.mark.parametrize("keep", [0, 60])
    def test_a_file_that_is_cut_short_is_refused(self, tmp_path, name, keep):
        path = write(tmp_path / name, numbers(ROWS, WIDTH))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=str(path)):
            open_vectors(path)

    @pytest.mark.parametrize(
        "rows",
        [[[1.0, 2.0], [1.0]], [[[1.0], [2.0]], [[1.0]]], [[[1.0, 2.0]], [[1.0]]], [[[1.0], [2.0, 3.0]], [[1.0]]]],
    )
    def test_sequences_of_several_lengths_are_refused(self, tmp_path, rows):
        pq.write_table(pa.table({"vector": rows}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="column 'vector': rows differ in length"):
            open_vectors(tmp_path / "a.parquet")

    def test_tensors_of_several_shapes_are_refused(self, tmp_path):
        save_file({"a": torch.zeros(2, WIDTH), "b": torch.zeros(3, WIDTH)}, tmp_path / "a.safetensors")
        with pytest.raises(DataError, match=r"a has the shape \[2, 4\], and b \[3, 4\]: give every input as many"):
            open_vectors(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("rows", [[[1.0], None], [[1.0], [None]], [[], []]])
    def test_missing_vectors_and_numbers_are_refused(self, tmp_path, rows):
        pq.write_table(pa.table({"vector": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="column 'vector': "):
            open_vectors(tmp_path / "a.parquet")

    def test_a_parquet_file_says_which_column_where_it_has_several(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"x": [[1.0]], "y": [[2.0]], "caption": ["One."]}), path)
        with pytest.raises(DataError, match=r"lists of numbers, and x, y are: set data\.feature_column"):
            open_vectors(path)
        assert open_vectors(path, "y")[:].item() == 2
        with pytest.raises(DataError, match="column 'caption': it is of the type string"):
            open_vectors(path, "caption")
        with pytest.raises(DataError, match="column 'z': there is no such column"):
            open_vectors(path, "z")

    def test_files_of_other_kinds_and_missing_ones_are_refused(self, tmp_path):
        (tmp_path / "a.pt").write_bytes(b"")
        with pytest.raises(DataError, match=r"a\.pt: vectors are read from files that end in \.npy, \.safetensors"):
            open_vectors(tmp_path / "a.pt")
        with pytest.raises(DataError, match=r"b\.npy: there is no such file"):
            open_vectors(tmp_path / "b.npy")
        with pytest.raises(DataError, match=r"feature_column is for a \.parquet"):
            open_vectors(write(tmp_path / "a.npy", numbers(2, 2)), "x")


class TestTables:
    def test_without_a_column_the_rows_belong_together_in_their_order(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *captions(3))
        dataset = load_captions(table, features=vectors)
        assert dataset["image"] == ["0", "1", "2"]
        assert dataset["captions"] == [["Thing 0."], ["Thing 1."], ["Thing 2."]]

    def test_a_column_row_may_take_any_row_and_any_number_of_times(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(9, WIDTH))
        (tmp_path / "captions.csv").write_text("row,caption,split\n7,One.,train\n2,Two.,train\n7,Three.,train\n")
        dataset = load_captions(tmp_path, features=vectors)
        assert dataset["image"] == ["7", "2"]
        assert dataset["captions"] == [["One.", "Three."], ["Two."]]

    def test_ids_are_found_in_the_column_id_or_in_the_one_that_is_named(self, tmp_path):
        vectors = tmp_path / "v.safetensors"
        save_file({"CCO": torch.zeros(2), "C/C": torch.ones(2)}, vectors)
        table = write_jsonl(tmp_path / "a.jsonl", *captions(2, id=["C/C", "CCO"]))
        assert load_captions(table, features=vectors)["image"] == ["C/C", "CCO"]
        table = write_jsonl(tmp_path / "b.jsonl", *captions(2, smiles=["C/C", "CCO"]))
        assert load_captions(table, features=vectors, image_column="smiles")["image"] == ["C/C", "CCO"]
        with pytest.raises(
            DataError, match="there is no image column: looked for id and found caption, split, smiles"
        ):
            load_captions(table, features=vectors)

    def test_parquet_has_vectors_and_captions_in_one_file(self, tmp_path):
        path = tmp_path / "a.parquet"
        vectors = numbers(4, WIDTH)
        columns = {"caption": [["A.", "B."], ["C."], ["D."], ["E."]], "split": ["train", "dev", "train", "dev"]}
        pq.write_table(pa.table({"embedding": vectors.tolist(), **columns}), path)
        dataset = load_captions(path, "dev", features=path)
        assert dataset["captions"] == [["C."], ["E."]]
        chosen = open_vectors(path).select(dataset["image"])
        assert torch.equal(chosen[:][:, 0], torch.from_numpy(vectors[[1, 3]]))

    def test_splits_are_cut_as_for_pictures(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(50, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *({"caption": "A."} for _ in range(50)))
        corpus = open_corpus(table, features=vectors, dev_share=0.2)
        dev, train = corpus.load("dev"), corpus.load("train")
        assert len(dev) + len(train) == 50
        assert 2 <= len(dev) <= 20

    @pytest.mark.parametrize("rows", [2, 4])
    def test_counts_that_differ_are_refused(self, tmp_path, rows):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *captions(rows))
        with pytest.raises(DataError, match=rf"c\.jsonl has {rows} rows, and .*v\.npy vectors for 3: give as many"):
            load_captions(table, features=vectors)

    @pytest.mark.parametrize("row", [3, -1, "x", "", None, 1.5])
    def test_rows_that_are_not_there_are_named(self, tmp_path, row):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *captions(2, row=[0, row]))
        with pytest.raises(DataError, match=r"line 2: the column 'row' holds .*v\.npy has no such row \(0 to 2\)"):
            load_captions(table, features=vectors)

    def test_a_bad_caption_is_named_and_the_rows_behind_it_stay_theirs(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        rows = captions(3)
        rows[1]["caption"] = 7
        table = write_jsonl(tmp_path / "c.jsonl", *rows)
        problems: list = []
        dataset = load_captions(table, features=vectors, on_problem=problems.append)
        assert [problem.where for problem in problems] == [f"{table}, line 2"]
        assert dataset["image"] == ["0", "2"]

    def test_a_changed_file_of_vectors_is_compared_anew(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *captions(3))
        load_captions(table, features=vectors)
        write(vectors, numbers(2, WIDTH))
        with pytest.raises(DataError, match="vectors for 2"):
            load_captions(table, features=vectors)

    def test_other_formats_and_missing_files_are_refused(self, tmp_path):
        vectors = write(tmp_path / "v.npy", numbers(3, WIDTH))
        table = write_jsonl(tmp_path / "c.jsonl", *captions(3))
        with pytest.raises(DataError, match=r"data\.features goes with a table of captions"):
            load_captions(table, format="coco", features=vectors)
        with pytest.raises(DataError, match=r"none\.npy: there is no such file"):
            load_captions(table, features=tmp_path / "none.npy")
        with pytest.raises(DataError, match=r"none\.jsonl: there is no such file"):
            load_captions(tmp_path / "none.jsonl", features=vectors)
        with pytest.raises(DataError, match="it holds no table of captions"):
            load_captions(vectors, features=vectors)
