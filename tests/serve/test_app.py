"""The endpoints: captions as OpenAI's clients expect them, and a status for everything that is refused."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("gradio")

from requests_of_chat import chat_body, file_of
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from vlm_caption.captioning.caption import Caption
from vlm_caption.captioning.datastore import Datastore
from vlm_caption.captioning.picture_vectors import vector_kind
from vlm_caption.serve.app import build_app
from vlm_caption.serve.guard import Guard
from vlm_caption.serve.limits import ServingLimits
from vlm_caption.serve.service import Service

CHAT = "/v1/chat/completions"
LOCAL = "http://localhost:8000"


def guarded(service: Service) -> Guard:
    return Guard(build_app(service, page=False), ["localhost"], False, service.limits)


def client_of(captioner, **limits) -> TestClient:
    return TestClient(guarded(Service(captioner, "tiny", ServingLimits(**limits))), base_url=LOCAL)


@pytest.fixture(scope="module")
def client(tiny_captioner):
    return client_of(tiny_captioner, max_pixels=5000, max_body=100_000)


class Gate:
    """Work that keeps the queue's thread busy until the gate is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, items):
        self.entered.set()
        self.opened.wait(10)
        return items


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


def blocked_client(captioner, gate, **limits) -> tuple[TestClient, Service]:
    service = Service(captioner, "tiny", ServingLimits(**limits))
    service.batcher.submit(gate, None)
    assert gate.entered.wait(10)
    return TestClient(guarded(service), base_url=LOCAL), service


def contents(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["message"]["content"] for choice in response.json()["choices"]]


def test_a_caption_is_that_of_the_captioner(client, tiny_captioner):
    [expected] = tiny_captioner.caption(file_of(3), num_beams=1, prompt="a")
    response = client.post(CHAT, json=chat_body(file_of(3), "a", num_beams=1))
    assert contents(response) == [expected.text]
    [choice] = response.json()["choices"]
    assert choice["vlm_caption"]["score"] == pytest.approx(expected.score, abs=1e-4)
    assert choice["finish_reason"] == ("stop" if expected.finished else "length")


def test_errors_of_other_addresses_and_methods_have_the_same_form(client):
    for response, status in ((client.get("/v1/completions"), 404), (client.get(CHAT), 405)):
        assert response.status_code == status
        assert response.json()["error"]["code"] == status


def test_several_captions_and_a_seed(client):
    body = chat_body(n=3, temperature=1, seed=5)
    first = contents(client.post(CHAT, json=body))
    assert len(first) == 3
    assert contents(client.post(CHAT, json=body)) == first
    assert contents(client.post(CHAT, json=body | {"seed": 6})) != first


def test_a_datastore_chooses_captions_unless_a_request_sets_beams_or_samples(tiny_captioner, tmp_path):
    written = tiny_captioner.caption(file_of(3), num_return_sequences=8)
    kind = vector_kind(tiny_captioner.model)
    Datastore.build(np.eye(2, kind.size, dtype=np.float32), [[written[5].text]] * 2, kind).save(tmp_path)
    client = TestClient(guarded(Service(tiny_captioner, "tiny", datastore=str(tmp_path))), base_url=LOCAL)
    best, second = contents(client.post(CHAT, json=chat_body(file_of(3), n=2)))
    assert best == written[5].text != second
    for fields in ({"num_beams": 2}, {"temperature": 1, "seed": 5}):
        without = contents(client_of(tiny_captioner).post(CHAT, json=chat_body(file_of(3), **fields)))
        assert contents(client.post(CHAT, json=chat_body(file_of(3), **fields))) == without


@pytest.mark.parametrize("fields", [{"num_beams": 1}, {"temperature": 1, "seed": 5, "n": 2}, {}, {"stop": "e"}])
def test_a_stream_adds_up_to_the_caption(client, fields):
    whole = contents(client.post(CHAT, json=chat_body(**fields)))
    response = client.post(CHAT, json=chat_body(stream=True, **fields))
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    texts = [""] * len(whole)
    for line in lines:
        [choice] = json.loads(line)["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
    assert texts == whole
    assert (len(lines) > len(whole)) == ("num_beams" in fields or "temperature" in fields)


class SlowCaptioner:
    """Captions a picture with the length of its file, and remembers the sizes of its batches."""

    prompt = ""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def caption_batches(self, batches, **settings):
        for batch in batches:
            self.sizes.append(len(batch))
            time.sleep(0.05)
            yield [[Caption("a picture", str(len(content)), -1.0)] for content in batch]


def test_fifty_clients_at_once_get_their_own_captions_from_few_batches():
    captioner = SlowCaptioner()
    client = client_of(captioner)
    with ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(lambda size: client.post(CHAT, json=chat_body(b"x" * size)), range(1, 51)))
    assert [contents(response) for response in responses] == [[str(size)] for size in range(1, 51)]
    assert sum(captioner.sizes) == 50
    assert max(captioner.sizes) == 8
    assert len(captioner.sizes) < 25


def test_health_and_models(client):
    assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (chat_body(b"no picture"), 400, "The picture: this is text, not a picture"),
        (chat_body(file_of()[:100]), 400, "The picture: the picture is cut short or damaged"),
        (chat_body(file_of(width=100, height=51)), 413, "The picture: the picture has 100 x 51 pixels"),
        (chat_body(b"x" * 100_000), 413, "The request has more than 100,000 bytes"),
        (chat_body(model="gpt-4"), 404, "There is no model 'gpt-4'"),
        (chat_body(text="{question} <image> <image>"), 400, ""),
        (chat_body(stream=True, text="{question} <image> <image>"), 400, ""),
    ],
    ids=["text", "damaged", "pixels", "bytes", "model", "prompt", "prompt-streamed"],
)
def test_what_cannot_be_answered_has_a_status_and_a_sentence(client, body, status, sentence):
    response = client.post(CHAT, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"].startswith(sentence)


def test_a_body_without_a_length_is_counted(client):
    response = client.post(CHAT, content=(b"x" * 50_000 for _ in range(3)))
    assert response.status_code == 413
    assert response.json()["error"]["message"].startswith("The request has more than 100,000 bytes")


def test_the_page_may_send_several_pictures_at_once():
    async def app(scope, receive, send):
        await receive()
        await PlainTextResponse("taken")(scope, receive, send)

    guard = Guard(app, ["localhost"], False, ServingLimits(max_body=10, max_upload=30))
    client = TestClient(guard, base_url=LOCAL)
    assert client.post("/gradio_api/upload", content=b"x" * 30).text == "taken"
    response = client.post("/gradio_api/upload", content=b"x" * 31)
    assert response.status_code == 413
    assert response.json()["error"]["message"].endswith("choose fewer pictures at a time.")
    assert client.post("/gradio_api/queue/join", content=b"x" * 30).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(tiny_captioner):
    app = guarded(Service(tiny_captioner, "tiny", ServingLimits(body_timeout=0.05)))
    headers = [(b"host", b"localhost"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "root_path": ""}
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope | {"raw_path": CHAT.encode(), "scheme": "http", "http_version": "1.1"}, receive, send))
    assert sent[0]["status"] == 408


def test_a_full_queue_says_when_to_come_back(tiny_captioner, gate):
    client, service = blocked_client(tiny_captioner, gate, max_waiting=1)
    service.batcher.submit(gate, None)
    response = client.post(CHAT, json=chat_body())
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "num_beams": 1}])
def test_a_caption_that_takes_too_long_is_given_up(tiny_captioner, gate, fields):
    client, _ = blocked_client(tiny_captioner, gate, timeout=0.05)
    response = client.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 504
    assert response.json()["error"]["message"] == "There was no caption within 0.05 s: try again later."


def test_a_server_that_ends_refuses_with_a_time_to_come_back(tiny_captioner):
    service = Service(tiny_captioner, "tiny")
    service.batcher.close()
    response = TestClient(guarded(service), base_url=LOCAL).post(CHAT, json=chat_body())
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_a_failure_inside_is_not_shown(tiny_captioner, monkeypatch, caplog):
    service = Service(tiny_captioner, "tiny")
    monkeypatch.setattr(service, "captioner", object())
    response = TestClient(guarded(service), base_url=LOCAL).get("/health")
    assert response.status_code == 200
    response = TestClient(guarded(service), base_url=LOCAL).post(CHAT, json=chat_body())
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "attribute" not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "10.0.0.1:8000"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
    ids=lambda headers: " ".join(headers.values()) or "empty",
)
def test_pages_of_strangers_may_not_use_the_server(client, headers):
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/")):
        response = client.request(method, path, headers=headers)
        assert (response.status_code, "error" in response.json()) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": LOCAL},
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "origin": LOCAL},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link to the page
    ],
)
def test_programs_and_the_own_page_may(client, headers):
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == 200
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [("192.168.1.2:8000", True), ("[fe80::1]:8000", True), ("captions.lan", True), ("evil.example", False)],
)
def test_other_machines_use_an_address_or_a_known_name(host, is_answered):
    guard = Guard(None, ["localhost", "Captions.lan"], any_address=True, limits=ServingLimits())
    assert guard._answers_to(host) is is_answered
