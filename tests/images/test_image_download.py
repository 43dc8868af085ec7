"""Pictures from URLs, from a server on this machine that does what servers do."""

import io
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vlm_caption.core.errors import ImageFetchError, ImageTooLargeError, NotAnImageError, UnsupportedImageError
from vlm_caption.images.opening import describe, open_image


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def encoded() -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.server.headers_seen.append(dict(self.headers))  # ty: ignore[missing-attribute]
        # A client that has seen enough hangs up.
        with suppress(ConnectionError):
            getattr(
                self, self.path.split("?")[0].strip("/").replace(".", "_").replace("%20", "_").replace("%C3%A4", "ae")
            )()

    def answer(self, content: bytes, status: int = 200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def picture_png(self):
        self.answer(encoded())

    def kaese_png(self):
        self.answer(encoded())

    def a_picture_png(self):
        self.answer(encoded())

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = encoded()
        for start in range(0, len(content), 100):
            piece = content[start : start + 100]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def missing(self):
        self.answer(b"<html>not here</html>", 404)

    def page(self):
        self.answer(b"<!doctype html><html>Please log in</html>", Content_Type="image/png")

    def once(self):
        self.answer(b"", 302, Location="/picture.png")

    def umlaut(self):
        self.answer(b"", 302, Location="/käse.png".encode().decode("latin-1"))  # raw UTF-8, as PHP sends it

    def loop(self):
        self.answer(b"", 302, Location="/loop")

    def local(self):
        self.answer(b"", 302, Location="file:///etc/passwd")

    def cut(self):
        content = encoded()
        self.answer(content[:100], Content_Length=len(content))

    def large(self):
        self.answer(b"", Content_Length=10**12)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def silent(self):
        time.sleep(5)

    def drip(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"\x89")
            time.sleep(0.05)

    def drip_header(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nName: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def running():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.headers_seen = []  # ty: ignore[missing-attribute]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running.headers_seen.clear()
    return f"http://127.0.0.1:{running.server_port}"


@pytest.mark.parametrize(
    "path", ["picture.png", "picture.png?a=b c&d=ü#part", "a picture.png", "chunked", "once", "umlaut"]
)
def test_a_url_gives_its_picture(server, path):
    np.testing.assert_array_equal(np.asarray(open_image(f"{server}/{path}")), np.asarray(picture()))


def test_nothing_is_sent_that_nobody_asked_for(running, server):
    open_image(f"{server}/picture.png")
    [headers] = running.headers_seen
    assert {"Cookie", "Authorization"}.isdisjoint(headers)
    assert headers["User-Agent"] == "vlm-caption"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "answers 404 Not Found"),
        ("loop", "redirects more than 5 times"),
        ("local", "redirects to a URL of file"),
        ("cut", "bytes before the file's end"),
    ],
)
def test_what_keeps_a_picture_from_coming_is_said(server, path, words):
    with pytest.raises(ImageFetchError, match=words) as caught:
        open_image(f"{server}/{path}")
    assert caught.value.source == f"{server}/{path}"


@pytest.mark.parametrize("path", ["silent", "drip", "drip_header"])
def test_a_slow_server_is_given_up_on_in_time(server, path):
    start = time.monotonic()
    with pytest.raises(ImageFetchError, match=r"within 0\.3 s"):
        open_image(f"{server}/{path}", timeout=0.3)
    assert time.monotonic() - start < 2
    while downloads() and time.monotonic() - start < 4:
        time.sleep(0.02)
    assert not downloads()


def downloads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("download")]


@pytest.mark.parametrize("path", ["large", "endless"])
def test_no_more_is_read_than_allowed(server, path):
    with pytest.raises(ImageTooLargeError, match="more than 1000000 bytes"):
        open_image(f"{server}/{path}", max_bytes=10**6)


def test_a_web_page_in_the_place_of_the_picture_is_named(server):
    with pytest.raises(NotAnImageError, match="web page"):
        open_image(f"{server}/page")


def test_no_server_at_all():
    with pytest.raises(ImageFetchError, match="cannot be fetched"):
        open_image("http://127.0.0.1:1/picture.png")


@pytest.mark.parametrize("url", ["http:///picture.png", "http://[::1/picture.png", "http://a..b/", "http://x:port/"])
def test_a_url_that_is_none(url):
    with pytest.raises(ImageFetchError):
        open_image(url)


def test_a_password_is_neither_sent_nor_shown():
    url = "https://me:secret@example.org/a.png"
    with pytest.raises(UnsupportedImageError, match="user name") as caught:
        open_image(url)
    assert "secret" not in str(caught.value)
    assert describe(url) == "https://…@example.org/a.png"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a.png", "s3://bucket/a.png"])
def test_other_schemes_are_refused(url):
    with pytest.raises(UnsupportedImageError, match="http or https"):
        open_image(url)
