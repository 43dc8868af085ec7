"""Requests become settings of a captioner, and captions become responses, without a server."""

import base64
import json

import pytest

from vlm_caption.captioning.caption import Caption
from vlm_caption.serve.limits import ServingLimits
from vlm_caption.serve.protocol import ReplyHead, RequestError, chat_chunk, chat_completion, parse_chat, settled

PICTURE = b"the bytes of a file"
URL = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
HEAD = ReplyHead("mine", "chatcmpl-1", 7)
LIMITS = ServingLimits(max_choices=4, max_new_tokens=50)


def image(url: str = URL) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def body(*parts: dict, **fields) -> bytes:
    message = {"role": "user", "content": list(parts or [image()])}
    return json.dumps({"model": "mine", "messages": [message]} | fields).encode()


def parse(content: bytes):
    return parse_chat(content, "mine", LIMITS)


def test_a_picture_alone_is_captioned_as_the_checkpoint_says():
    job = parse(body())
    assert (job.picture, job.text, job.generation, job.stream) == (PICTURE, "", {}, False)


def test_text_is_taken_with_the_picture_in_either_order():
    assert parse(body(text(" Who? "), image())).text == parse(body(image(), text("Who?"))).text == "Who?"


@pytest.mark.parametrize(
    ("fields", "generation"),
    [
        ({"n": 1}, {}),
        ({"n": 3}, {"num_return_sequences": 3}),
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 9, "max_tokens": 7}, {"max_new_tokens": 9}),
        ({"max_tokens": 4000}, {"max_new_tokens": 50}),
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": [".", ","]}, {"stop": (".", ",")}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "seed": 3, "top_p": 0.5}, {"do_sample": False}),
        ({"top_p": 1, "seed": 3}, {}),
        ({"num_beams": 4}, {"num_beams": 4}),
        (
            {"temperature": 0.5, "seed": -1},
            {"do_sample": True, "num_beams": 1, "temperature": 0.5, "top_p": 1.0, "top_k": 0, "seed": 2**32 - 1},
        ),
        (
            {"top_p": 0.5},
            {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_p": 0.5, "top_k": 0},
        ),
    ],
)
def test_options_are_those_of_the_captioner(fields, generation):
    assert parse(body(**fields)).generation == generation


@pytest.mark.parametrize(
    ("fields", "only_grows"),
    [
        ({}, False),
        ({"num_beams": 1}, True),
        ({"num_beams": 1, "n": 2}, False),
        ({"temperature": 1}, True),
        ({"temperature": 1, "n": 2}, True),
    ],
)
def test_beams_are_not_sent_before_the_end(fields, only_grows):
    assert parse(body(**fields)).only_grows is only_grows


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"", 400, "The body: Invalid JSON"),
        (b"[" * 100_000, 400, "The body: Invalid JSON"),
        (b"[]", 400, "The body: Input should be an object"),
        (b"\xff", 400, "The body: "),
        (body(model="other"), 404, "There is no model 'other': this server has mine."),
        (body(n=0), 400, "'n': Input should be greater than or equal to 1"),
        (body(n=5), 400, "n: at most 4 captions of a picture, not 5."),
        (body(temperature=-1), 400, "'temperature': "),
        (body(temperature=float("nan")), 400, "'temperature': "),
        (body(top_p=0), 400, "'top_p': "),
        (body(stop=" "), 400, "stop: "),
        (body(stop=["a", "b", "c", "d", "e"]), 400, "stop: give at most 4 texts"),
        (body(num_beams=2, temperature=1), 400, "num_beams: beams and sampling exclude each other"),
        (body(tools=[]), 400, "'tools': a captioner has no such option: leave it out."),
        (body(text("no picture")), 400, "messages: give one message"),
        (body(image(), image()), 400, "messages: give one message"),
        (body(image(), text("a"), text("b")), 400, "messages: give one message"),
        (body(messages=[{"role": "user", "content": "words"}]), 400, "'messages.0.content': "),
        (body(messages=[{"role": "system", "content": [text("be kind")]}]), 400, "'messages.0.role': "),
        (body(messages=[]), 400, "messages: give one message"),
        (body({"type": "file", "file": {"file_id": "1"}}), 400, "'messages.0.content.0': "),
    ],
)
def test_mistakes_are_named(content, status, sentence):
    with pytest.raises(RequestError) as raised:
        parse(content)
    assert raised.value.status == status
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/cat.jpg",
        "file:///etc/passwd",
        "/etc/passwd",
        "examples/cat.jpg",
        "data:image/png,plain",
        "",
    ],
)
def test_only_data_urls_are_read(url):
    with pytest.raises(RequestError, match="only data URLs in base64 are read"):
        parse(body(image(url)))


@pytest.mark.parametrize("tail", ["%%%", "YQ", "YQ==YQ==", "Y Q=="])
def test_damaged_base64_is_refused(tail):
    with pytest.raises(RequestError, match="the base64 is damaged"):
        parse(body(image("data:;base64," + tail)))


def test_a_response_has_the_captions_with_their_scores():
    captions = [Caption("a", "A dog.", -0.5, confidence=0.75), Caption("a", "A", -1.0, finished=False)]
    response = chat_completion(captions, HEAD)
    assert (response["object"], response["created"]) == ("chat.completion", 7)
    first, second = response["choices"]
    assert first["message"]["content"] == "A dog."
    assert first["finish_reason"] == "stop"
    assert first["vlm_caption"] == {"score": -0.5, "confidence": 0.75}
    assert (second["index"], second["finish_reason"]) == (1, "length")
    assert second["vlm_caption"]["confidence"] is None


def test_the_last_chunk_of_a_choice_says_why_it_ended():
    chunk = chat_chunk(1, "dog.", None, HEAD)["choices"][0]
    assert (chunk["index"], chunk["delta"]["content"], chunk["finish_reason"]) == (1, "dog.", None)
    last = chat_chunk(1, "", Caption("a", "A dog.", -0.5), HEAD)["choices"][0]
    assert last["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("written", "stop", "part"),
    [
        ("A dog runs", (), "A dog runs"),
        ("A dog runs", ("dog",), "A"),
        ("A dog ru", ("runs",), "A dog"),  # "ru" may become "runs"
        ("A caf\ufffd", (), "A caf"),
        (" A  dog.\nUser: what", ("\nUser:",), "A dog."),
        ("A dog.\nUse", ("\nUser:",), "A dog"),
        ("A dog  runs", ("\n",), "A dog runs"),
    ],
)
def test_what_may_be_taken_back_is_not_sent(written, stop, part):
    assert settled(written, stop) == part
    assert " ".join(written.split()).startswith(part)
