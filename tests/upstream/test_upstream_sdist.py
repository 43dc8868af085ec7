"""transformers' own tests can be had: their source distribution is fetched, and the mixins are in it.

The tests themselves are not marked `index`: many skip for want of a GPU or of a package, and must not fail for that.
"""

import tarfile

import pytest
from upstream import sdist


@pytest.mark.index
@pytest.mark.parametrize(
    ("module", "mixin"),
    [
        ("test_modeling_common", "ModelTesterMixin"),
        ("test_configuration_common", "ConfigTester"),
        ("test_processing_common", "ProcessorTesterMixin"),
        ("test_pipeline_mixin", "PipelineTesterMixin"),
    ],
)
def test_the_mixins_are_there(module, mixin):
    try:
        loaded = sdist.upstream(module)
    except sdist.SdistError as error:
        pytest.skip(str(error))
    assert getattr(loaded, mixin).__module__ == f"transformers_tests.{module}"


def _archive(folder, *names):
    """A source distribution that holds files of these names."""
    path = folder / "transformers-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def test_only_the_tests_are_unpacked(tmp_path):
    archive = _archive(
        tmp_path, "transformers-1/setup.py", "transformers-1/tests/test_a.py", "transformers-1/src/tests/b"
    )
    unpacked = sdist._unpack(archive, tmp_path / "unpacked")
    assert [path.name for path in unpacked.iterdir()] == ["test_a.py"]
    assert [path.name for path in unpacked.parent.iterdir()] == ["tests"]


def test_a_member_that_leaves_the_folder_is_refused(tmp_path):
    archive = _archive(tmp_path, "transformers-1/tests/../../../out")
    with pytest.raises(tarfile.OutsideDestinationError):
        sdist._unpack(archive, tmp_path / "unpacked")


def test_a_source_distribution_without_tests_says_so(tmp_path):
    with pytest.raises(sdist.SdistError, match="carries no tests"):
        sdist._unpack(_archive(tmp_path, "transformers-1/setup.py"), tmp_path / "unpacked")


def test_a_version_that_is_not_on_the_index_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(sdist.transformers, "__version__", "0.0.1.dev0")
    with pytest.raises(sdist.SdistError, match=r"could not fetch .* transformers 0\.0\.1\.dev0"):
        sdist.tests_dir.__wrapped__()
    assert not list((tmp_path / "transformers-tests").iterdir())
