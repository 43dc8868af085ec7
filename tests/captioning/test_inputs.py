"""The pictures that the arguments of a command name."""

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import picture

from vlm_caption.captioning.inputs import find_pictures
from vlm_caption.captioning.places import place_of
from vlm_caption.core.errors import ConfigError, DataError, ImageError
from vlm_caption.images.opening import describe, open_image


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """photos/{0,1,2}.png of widths 20, 21 and 22, the last in a folder below."""
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("photos", "photos", "photos/below")):
        Path(folder).mkdir(exist_ok=True)
        picture(number, width=20 + number).save(f"{folder}/{number}.png")
    return ["photos/0.png", "photos/1.png", "photos/below/2.png"]


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number, width=20 + number).save(file, "PNG")
    return file.getvalue()


def find(*names, stdin: bytes = b"") -> list[str]:
    errors = []
    found = find_pictures(names, errors.append, io.BytesIO(stdin))
    assert errors == []
    return [describe(source) for source in found]


def widths(*names) -> list[int]:
    return [open_image(source).width for source in find_pictures(names, pytest.fail)]


@pytest.mark.parametrize("name", ["photos", "photos/**/*.png", "@list.txt"])
def test_folders_globs_and_lists_name_the_same_pictures(photos, name):
    Path("list.txt").write_text("\n".join(photos) + "\n")
    assert sorted(find(name)) == photos


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_standard_input_is_a_list(photos, separator):
    urls = ["https://example.com/a?b=[1]*", "data:image/png;base64,AAAA"]
    names = [*photos, *urls]
    assert find("-", stdin=separator.join(names).encode()) == [*photos, *(describe(url) for url in urls)]
    assert find("-", stdin=(separator.join(names) + separator).encode())[:3] == photos


def test_data_urls_of_two_pictures_are_two():
    urls = [f"data:image/png;base64,{'A' * 60}{end}" for end in "xyx"]
    Path("list.txt").write_text("\n".join(urls))
    found = find("@list.txt")
    assert found == [describe(urls[0]), describe(urls[1])]
    assert len(set(found)) == 2


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern():
    picture(0).save("a[1].png")
    assert find("a[1].png") == ["a[1].png"]


def test_a_picture_is_listed_once_however_its_path_is_spelled(photos, tmp_path):
    assert find("photos", "./photos/", str(tmp_path / "photos"), "photos/../photos/0.png") == photos
    assert place_of("./photos//0.png") == place_of(str(tmp_path / "photos" / "0.png"))
    assert place_of("https://example.com/../a") == "https://example.com/../a"


def test_zip_archives_hold_pictures():
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/1.png", b"")
        archive.writestr("x/1.png", encoded(1))
        archive.writestr("notes.txt", "no picture")
        archive.writestr("0.png", encoded(0))
    assert find("a.zip") == ["a.zip, x/1.png", "a.zip, 0.png"]
    assert widths("a.zip") == [21, 20]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_tar_archives_and_shards_hold_pictures(name):
    with tarfile.open(name, "w:gz" if "gz" in name else "w") as archive:
        for member, content in (("1.png", encoded(1)), ("1.txt", b"A dog."), ("0.png", encoded(0))):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert find(name) == [f"{name}, 1.png", f"{name}, 0.png"]
    assert widths(name) == [21, 20]


@pytest.mark.parametrize("is_struct", [False, True])
def test_parquet_files_hold_pictures(is_struct):
    pictures = [encoded(number % 30) for number in range(40)]
    values = [{"bytes": content, "path": None} for content in pictures] if is_struct else pictures
    pq.write_table(pa.table({"caption": ["a"] * 40, "image": values}), "a.parquet", row_group_size=7)
    assert widths("a.parquet") == [20 + number % 30 for number in range(40)]
    sources = find_pictures(["a.parquet"], pytest.fail)
    assert describe(sources[39]) == "a.parquet, row 40"
    assert [open_image(sources[row]).width for row in (33, 5, 39)] == [23, 25, 29]


def test_rows_behind_a_damaged_row_group_keep_their_own_pictures():
    pq.write_table(pa.table({"image": [encoded(number) for number in range(30)]}), "a.parquet", row_group_size=6)
    column = pq.ParquetFile("a.parquet").metadata.row_group(2).column(0)
    content = bytearray(Path("a.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    Path("a.parquet").write_bytes(content)
    found = {}
    for row, source in enumerate(find_pictures(["a.parquet"], pytest.fail)):
        try:
            found[row] = open_image(source).width
        except ImageError as error:
            assert error.source == f"a.parquet, row {row + 1}"  # noqa: PT017 - the others are opened
    assert found == {row: 20 + row for row in range(30) if not 12 <= row < 18}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.parquet"])
def test_a_stored_picture_with_too_many_bytes_can_be_opened_again(name):
    with zipfile.ZipFile("a.zip", "w") as zipped, tarfile.open("a.tar", "w") as tarred:
        zipped.writestr("0.png", encoded(0))
        tarred.add("photos/0.png", "0.png")
    pq.write_table(pa.table({"image": [encoded(0)]}), "a.parquet")
    [source] = find_pictures([name], pytest.fail)
    for _ in range(2):
        with pytest.raises(ImageError, match="bytes"):
            open_image(source, max_bytes=20)
        assert open_image(source).width == 20


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.parquet"])
def test_stored_pictures_can_be_sent_to_another_process(name):
    with zipfile.ZipFile("a.zip", "w") as zipped, tarfile.open("a.tar", "w") as tarred:
        for number in range(2):
            zipped.writestr(f"{number}.png", encoded(number))
            tarred.add(f"photos/{number}.png")
    pq.write_table(pa.table({"image": [encoded(0), encoded(1)]}), "a.parquet")
    sent = pickle.loads(pickle.dumps(find_pictures([name], pytest.fail)))
    assert list(map(describe, sent)) == find(name)
    assert [open_image(source).width for source in sent] == [20, 21]
    again = pickle.loads(pickle.dumps(find_pictures([name], pytest.fail)))
    Path(name).unlink()
    assert open_image(again[1]).width == 21  # it is open already


@pytest.mark.parametrize("name", ["lost.zip", "lost.tar"])
def test_a_stored_picture_whose_archive_another_process_lacks_is_bad_alone(name):
    with zipfile.ZipFile("lost.zip", "w") as zipped, tarfile.open("lost.tar", "w") as tarred:
        zipped.write("photos/1.png", "1.png")
        tarred.add("photos/1.png", "1.png")
    [sent] = pickle.loads(pickle.dumps(find_pictures([name], pytest.fail)))
    Path(name).unlink()
    with pytest.raises(ImageError, match=rf"{name}, 1\.png: the file cannot be read .*No such file"):
        open_image(sent)


def test_a_row_without_a_picture_is_bad_alone():
    pq.write_table(pa.table({"image": pa.array([encoded(0), None], pa.binary())}), "a.parquet")
    good, bad = find_pictures(["a.parquet"], pytest.fail)
    assert open_image(good).width == 20
    with pytest.raises(ImageError, match=r"a\.parquet, row 2: .*the row has no picture"):
        open_image(bad)


def test_a_damaged_member_is_bad_alone():
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("1.png", encoded(1))
        archive.writestr("0.png", encoded(0))
    content = bytearray(Path("a.zip").read_bytes())
    content[60] ^= 255
    Path("a.zip").write_bytes(content)
    bad, good = find_pictures(["a.zip"], pytest.fail)
    assert open_image(good).width == 20
    with pytest.raises(ImageError, match=r"a\.zip, 1\.png: the file cannot be read \(Bad CRC-32"):
        open_image(bad)


@pytest.mark.parametrize("name", ["/etc/passwd", "/dev/zero", "../0.png", "below/../../0.png"])
def test_a_row_of_parquet_names_no_file_outside_the_folder_of_the_table(photos, name):
    pq.write_table(pa.table({"image": ["1.png", name]}), "photos/a.parquet")
    good, bad = find_pictures(["photos/a.parquet"], pytest.fail)
    assert open_image(good).width == 21
    with pytest.raises(ImageError, match="which is not in the folder of the table"):
        open_image(bad)


def test_a_row_of_parquet_names_the_file_that_is_not_there(photos):
    pq.write_table(pa.table({"image": ["gone/1.png"]}), "photos/a.parquet")
    [bad] = find_pictures(["photos/a.parquet"], pytest.fail)
    with pytest.raises(ImageError, match=r"the row names 'gone/1\.png': No such file"):
        open_image(bad)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.parquet"])
def test_an_archive_that_cannot_be_read_is_bad_alone(photos, name):
    pq.write_table(pa.table({"caption": ["a"]}), "b.parquet")
    for content, reason in ((None, "there is no such file"), (b"no archive", "cannot be read (")):
        if content is not None:
            Path(name).write_bytes(content)
        errors = []
        assert list(map(str, find_pictures([name, "b.parquet", "photos"], errors.append))) == photos
        assert [error.source for error in errors] == [name, "b.parquet"]
        assert reason in errors[0].reason


def test_the_pictures_before_a_tars_damage_are_found():
    with tarfile.open("a.tar", "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(encoded(number))
            archive.addfile(info, io.BytesIO(encoded(number)))
    content = Path("a.tar").read_bytes()
    Path("a.tar").write_bytes(content[: content.index(b"2.png") + 600])
    errors = []
    found = find_pictures(["a.tar"], errors.append)
    assert [open_image(source).width for source in found[:2]] == [20, 21]
    assert [error.source for error in errors] == ["a.tar"]
    with pytest.raises(ImageError, match=r"a\.tar, 2\.png: the file cannot be read \(unexpected end of data"):
        open_image(found[2])


def test_a_list_that_cannot_be_read_is_named():
    with pytest.raises(DataError, match=r"a\.txt: the list of pictures cannot be read \(No such file or directory"):
        find_pictures(["@a.txt"], pytest.fail)


def test_a_name_that_is_too_long_is_a_picture_that_is_not_there(photos):
    Path("list.txt").write_text("a" * 5000 + "\n" + photos[0])
    assert [str(source) for source in find_pictures(["@list.txt"], pytest.fail)] == ["a" * 5000, photos[0]]


def test_an_empty_argument_is_a_mistake_and_not_the_current_folder():
    with pytest.raises(ConfigError, match="An argument is empty, and names no picture"):
        find_pictures([""], pytest.fail)


def test_a_name_without_pictures_is_an_error_of_its_own(photos):
    Path("none").mkdir()
    errors = []
    found = find_pictures(["none", "*.jpg", "photos"], errors.append)
    assert list(map(str, found)) == photos
    assert [error.source for error in errors] == ["none", "*.jpg"]


def test_names_that_are_no_text_are_places_all_the_same():
    name = os.fsdecode(b"\xff.png")
    assert place_of(name).endswith("/\\xff.png")
    assert place_of(place_of(name)) == place_of(name)
