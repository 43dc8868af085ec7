"""A server as a process of its own: OpenAI's client, a browser, and its end by Ctrl-C."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")

import httpx
from commands import REPOSITORY
from requests_of_chat import chat_body, file_of
from tiny_models import picture, save_checkpoint

from vlm_caption import Captioner
from vlm_caption.captioning.tables import read_table

PROBLEM = "this is text, not a picture (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, JPEG2000, PPM)"


class Server:
    """A process that serves a checkpoint.

    Attributes:
        url: Where.
    """

    def __init__(self, checkpoint: Path, *options: str) -> None:
        command = [sys.executable, "-m", "vlm_caption", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stderr.readline()
        found = re.search(r"Page: (http://\S+)/ ", line)
        assert found, line + self.process.stderr.read()
        self.url = found[1]

    def ask(self, **fields) -> dict:
        body = json.dumps(chat_body(**fields)).encode()
        with urllib.request.urlopen(f"{self.url}/v1/chat/completions", data=body, timeout=300) as answer:
            return json.load(answer)

    def end(self, signum: int = signal.SIGINT) -> str:
        """Sends a signal, and returns what the process wrote after its first line."""
        self.process.send_signal(signum)
        return self.process.communicate(timeout=300)[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", 0)


@pytest.fixture(scope="module")
def server(checkpoint):
    server = Server(checkpoint)
    yield server
    server.process.kill()
    server.process.communicate()


def test_the_client_of_openai_is_answered(server, checkpoint):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    [expected] = Captioner.from_pretrained(checkpoint).caption(file_of())
    body = chat_body()
    [choice] = client.chat.completions.create(**body).choices
    assert choice.message.content == expected.text
    assert choice.vlm_caption["score"] == pytest.approx(expected.score, abs=1e-4)
    chunks = client.chat.completions.create(**body, stream=True, extra_body={"num_beams": 1})
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == expected.text
    with pytest.raises(openai.BadRequestError, match="a captioner has no such option"):
        client.chat.completions.create(**body, logprobs=True)


def test_gradio_gives_no_file_and_fetches_nothing(server):
    hits = []
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: hits.append(listener.accept()), daemon=True).start()
    elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    for place in ("/etc/passwd", str(REPOSITORY / "README.md"), "README.md", "../../etc/passwd", elsewhere):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{server.url}/gradio_api/file={place}", timeout=300)
        assert raised.value.code in (403, 404)
    config = json.load(urllib.request.urlopen(f"{server.url}/config", timeout=300))
    [event, *_] = config["dependencies"]
    for place in ("/etc/passwd", elsewhere):
        file = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
        values = [file, *[None] * (len(event["inputs"]) - 1)]
        answer = run_event(server.url, event["id"], values)
        assert '"success": false' in answer.lower() or '"success":false' in answer.lower(), answer
        assert "root:" not in answer
    assert not hits
    listener.close()


def run_event(url: str, number: int, values: list) -> str:
    """Runs an event of the page as the page does, and returns the stream of its messages."""
    body = json.dumps({"data": values, "fn_index": number, "session_hash": "test"}).encode()
    head = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/gradio_api/queue/join", body, head), timeout=300).read()
    stream = urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=test", timeout=300)
    lines = []
    for line in stream:
        lines.append(line.decode())
        if "process_completed" in lines[-1]:
            break
    return "".join(lines)


def caption_table(url: str, files: dict[str, bytes], captions: int = 1) -> tuple[list[list], str]:
    """Uses the page's second tab as a browser does, and returns the rows of its table and the file to download."""
    config = httpx.get(f"{url}/config").json()
    event = config["dependencies"][-1]
    shown = {component["id"]: component["props"] for component in config["components"]}
    uploaded = httpx.post(f"{url}/gradio_api/upload", files=[("files", file) for file in files.items()], timeout=300)
    pictures = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in uploaded.json()]
    controls = [shown[number] for number in event["inputs"][2:]]
    values = [captions if control["label"] == "Captions" else control.get("value") for control in controls]
    *_, last = run_event(url, event["id"], [pictures, None, *values]).strip().splitlines()
    table, button = json.loads(last.removeprefix("data: "))["output"]["data"]
    return table["data"], httpx.get(button["value"]["url"]).text


def test_several_pictures_become_a_table_with_a_file(server):
    files = {f"{number}.png": file_of(number) for number in range(9)}  # more than a batch
    files |= {"=1+1.png": file_of(9), "bad.png": b"no picture"}
    rows, file = caption_table(server.url, files)
    assert [row[0] for row in rows] == [*files]
    assert all(row[1] and row[2] < 0 and row[4] == "" for row in rows[:-1])
    assert rows[-1][1:] == ["", None, None, PROBLEM]
    written = [*csv.DictReader(io.StringIO(file))]
    assert [row["image"] for row in written] == [*[*files][:9], "'=1+1.png", "bad.png"]
    assert [row["problem"] for row in written] == [row[4] for row in rows]
    assert [row["caption"].removeprefix("'") for row in written] == [row[1] for row in rows]


def test_a_table_without_problems_is_a_file_of_captions(server, tmp_path):
    rows, file = caption_table(server.url, {"a.png": file_of(1), "b.png": file_of(2)}, captions=2)
    (tmp_path / "captions.csv").write_text(file, encoding="utf-8", newline="")
    entries = read_table(tmp_path / "captions.csv", "csv")
    assert [entry["image"] for entry in entries] == ["a.png", "a.png", "b.png", "b.png"]
    assert [(entry["caption"], entry["score"]) for entry in entries] == [(row[1], row[2]) for row in rows]


@pytest.mark.export
def test_an_export_is_served_with_a_short_queue_until_sigterm(checkpoint, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from vlm_caption import runtime
    from vlm_caption.export import export_onnx

    exported = export_onnx(checkpoint, tmp_path / "tiny")
    [expected] = runtime.Captioner.from_pretrained(exported, threads=1).caption(file_of())
    server = Server(exported, "--max-waiting", "2")
    try:
        assert b"vlm_caption" in urllib.request.urlopen(server.url, timeout=300).read()
        [choice] = server.ask()["choices"]
        assert choice["message"]["content"] == expected.text
        rows, _ = caption_table(server.url, {f"{number}.png": file_of(number) for number in range(6)})
        assert [row[4] for row in rows] == [""] * 6
        log = server.end(signal.SIGTERM)
    finally:
        server.process.kill()
    assert server.process.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(r"chat completion: 200, [\d.]+ s\n", log), log


def test_ctrl_c_ends_it_and_its_files_are_gone(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Server(checkpoint)
    assert server.ask(num_beams=1)["choices"]
    assert [*tmp_path.glob("vlm-caption-*")]
    log = server.end()
    assert not [*tmp_path.glob("vlm-caption-*")]
    assert server.process.returncode == 130
    assert re.fullmatch(r"chat completion: 200, [\d.]+ s\n", log), log


def test_a_port_in_use_is_one_sentence(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vlm_caption", "serve", "--checkpoint", str(checkpoint), "--port", port]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"vlm-caption serve: --host 127.0.0.1 --port {port}: nothing can listen there .*\n", done.stderr
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_captioned_in_a_browser(server, tmp_path, width):
    from live_browser import LiveBrowser

    (tmp_path / "photo.png").write_bytes(file_of(width=300, height=200))
    with LiveBrowser(tmp_path) as browser:
        browser.open(server.url, width)
        browser.wait_for("document.querySelector('input[type=file]') != null")
        browser.upload("input[type=file]", [tmp_path / "photo.png"])
        browser.wait_for("document.body.innerText.includes('Score -')")
        browser.wait_for("document.querySelectorAll('img[src*=\"gradio_api/file\"]').length >= 2")  # with the heat map
        assert browser.run("document.querySelector('textarea').value")
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.screenshot(tmp_path / "page.png")
        assert all(url.startswith((server.url, "data:", "blob:", "about:")) for url in browser.requested)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_several_pictures_are_captioned_in_a_browser(server, tmp_path, width):
    from live_browser import LiveBrowser

    files = [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        picture(number, 200, 150).save(file)
    (tmp_path / "text.jpg").write_text("no picture")
    with LiveBrowser(tmp_path) as browser:
        browser.open(server.url, width)
        browser.click("[role=tab]", "Several pictures")
        is_for_files = "[...document.querySelectorAll('input[type=file]')].find(e => e.multiple && !e.webkitdirectory)"
        browser.wait_for(f"{is_for_files} != null")
        browser.run(f"{is_for_files}.id = 'files'")
        browser.upload("#files", [*files, tmp_path / "text.jpg"])
        browser.wait_for("document.body.innerText.includes('⇣')")  # the sizes of uploaded files
        browser.click("button", "Caption all")
        text = browser.wait_for(f"document.body.innerText.includes('{PROBLEM[:12]}') && document.body.innerText")
        rows = [line for line in text.splitlines() if line in ("0.png", "1.png", "text.jpg")]
        assert sorted(rows) == ["0.png"] * 3 + ["1.png"] * 3 + ["text.jpg"]
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.wait_for("document.querySelector('button.secondary:not([disabled])') != null")
