import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test reads its corpora anew."""
    folder = tmp_path.parent / f"{tmp_path.name}-cache"
    monkeypatch.setenv("VLM_CAPTION_CACHE", str(folder))
    return folder
