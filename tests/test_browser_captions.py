"""The page of examples/browser: the captions of the Python runtime."""

import importlib.util

import pytest
from browser import choose_files, find_chromium
from commands import REPOSITORY
from tiny_models import EOS, picture, tiny_model, tiny_processor

PAGE = REPOSITORY / "examples" / "browser"
PACKAGES = PAGE / "node_modules"

pytestmark = [
    pytest.mark.npm,
    pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript, of the extra onnx"),
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="needs the packages that npm installs in examples/browser"),
]


@pytest.fixture
def site(tmp_path):
    """A folder with the page and its packages."""
    find_chromium()
    for path in (PAGE / "index.html", PAGE / "caption.mjs", PACKAGES):
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("quantize", [None, "int4"], ids=["float32", "int4"])
def test_the_page_writes_the_captions_of_the_runtime(site, quantize):
    from vlm_caption import runtime
    from vlm_caption.export import export_onnx

    model = tiny_model("dinov2", "llama", image_tokens="patches", image_grid=2, pooled_in_front=True)
    model.generation_config.update(max_new_tokens=12, no_repeat_ngram_size=2, eos_token_id=[EOS])
    model.save_pretrained(site / "checkpoint", full=True)
    tiny_processor(model.config).save_pretrained(site / "checkpoint")
    export_onnx(site / "checkpoint", site / "exported", quantize)
    names = []
    for seed, size in enumerate([(40, 30), (133, 70), (9, 32)]):
        names.append(f"{seed}.png")
        picture(seed, *size).save(site / names[-1])
    captioner = runtime.Captioner.from_pretrained(site / "exported")
    expected = captioner.caption([site / name for name in names], num_beams=1)
    texts = choose_files(site, names)
    assert texts == [caption.text for caption in expected]
    assert len(set(texts)) > 1


def test_a_page_without_a_captioner_says_so(site):
    [text] = choose_files(site, [])
    assert "it has no captioner.json" in text
