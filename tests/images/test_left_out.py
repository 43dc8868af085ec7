"""What a search for pictures passes over is counted, and what fails costs one picture."""

import errno
import io
import os

import pytest
from PIL import Image

from vlm_caption.core.errors import ImageError
from vlm_caption.images import opening
from vlm_caption.images.finding import PassedOver, find_images
from vlm_caption.images.opening import open_image


@pytest.fixture
def photo():
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


def test_linked_closed_and_unnamed_are_counted(tmp_path, photo, monkeypatch, tmp_path_factory):
    (tmp_path / "a.png").write_bytes(photo)
    (tmp_path / "b").write_bytes(photo)
    (tmp_path / "notes.txt").write_text("Hello")
    (tmp_path / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    for name in ("closed", "lost+found"):
        (tmp_path / name).mkdir()
    list_folder = os.scandir

    def scandir(path):
        if str(path).endswith(("closed", "lost+found")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    passed_over = PassedOver()
    assert find_images([tmp_path], passed_over=passed_over) == [tmp_path / "a.png"]
    assert passed_over == PassedOver(links=1, closed=1, unnamed=1)
    assert str(passed_over).startswith("passed over 1 linked folders")
    assert str(PassedOver()) == ""


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images([tmp_path])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), r"the file cannot be read \(Input/output error\)"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (MemoryError(), "more memory than there is"),
    ],
)
@pytest.mark.parametrize("place", ["_read_header", "_decode"])
def test_a_failing_disk_or_memory_that_runs_out_is_the_error_of_one_picture(
    tmp_path, photo, monkeypatch, error, words, place
):
    def fail(*arguments, **options):
        raise error

    (tmp_path / "a.png").write_bytes(photo)
    monkeypatch.setattr(opening, place, fail)
    with pytest.raises(ImageError, match=words) as caught:
        open_image(tmp_path / "a.png")
    assert caught.value.source == str(tmp_path / "a.png")


def test_an_error_of_the_disk_while_pixels_are_read_is_no_fault_of_the_picture(tmp_path, photo, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.png").write_bytes(photo)
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path / "a.png")
