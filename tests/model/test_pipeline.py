"""transformers' `image-text-to-text` pipeline on a checkpoint folder."""

import functools
import http.server
import logging
import threading
import warnings
from pathlib import Path

import pytest
from tiny_models import caption_of, picture, save_checkpoint
from transformers import pipeline
from transformers.utils import logging as transformers_logging


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with two pictures beside it."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), pictures=2)


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-text-to-text", model=str(folder))


@pytest.mark.parametrize("prompt", ["", "A photo of"])
@pytest.mark.parametrize("kind", ["path", "pil"])
def test_a_picture_is_captioned_with_and_without_a_prompt(pipe, folder, prompt, kind):
    image = str(folder / "0.png") if kind == "path" else picture(0)
    (output,) = pipe(image, text=prompt)
    assert output["generated_text"] == caption_of(folder, 0, prompt)


def test_new_text_alone_is_returned_on_demand(pipe, folder):
    (output,) = pipe(picture(0), text="A photo of", return_full_text=False)
    assert "A photo of" + output["generated_text"] == caption_of(folder, 0, "A photo of")


def test_a_picture_is_fetched_from_its_url(pipe, folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (output,) = pipe(f"http://127.0.0.1:{server.server_port}/1.png", text="")
        server.shutdown()
    assert output["generated_text"] == caption_of(folder, 1)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_is_captioned_as_its_pictures_alone(pipe, folder, batch_size):
    outputs = pipe([picture(0), picture(1), picture(0)], text=["", "A photo of", ""], batch_size=batch_size)
    texts = [
        output[0]["generated_text"] if isinstance(output, list) else output["generated_text"] for output in outputs
    ]
    assert texts == [caption_of(folder, 0), caption_of(folder, 1, "A photo of"), caption_of(folder, 0)]


def test_no_warning_and_no_log_line(folder, caplog):
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_propagation()
    try:
        with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
            warnings.simplefilter("always")
            pipeline("image-text-to-text", model=str(folder))(picture(0), text="")
    finally:
        transformers_logging.disable_propagation()
        transformers_logging.set_verbosity(verbosity)
    assert [str(warning.message) for warning in caught] == []
    assert [record.getMessage() for record in caplog.records] == []
