"""Pictures from the web, with a limit on their size and on the time they take.

By the standard library: the HTTP client that comes with huggingface_hub changes its name with its version. Nothing but
the URL is sent, no cookies and no credentials. Proxies are taken from the environment (`https_proxy`, …).
"""

import contextlib
import functools
import io
import queue
import socket
import threading
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import cast
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from ..core.errors import ImageError, ImageFetchError, ImageTooLargeError, UnsupportedImageError

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Some sites refuse Python's own name.
_HEADERS = {"User-Agent": "vlm-caption", "Accept": "image/*,*/*;q=0.5"}


def download(url: str, name: str, max_bytes: int, timeout: float) -> io.BytesIO:
    """Fetch what a URL of http or https names.

    Args:
        url: The URL. What it may not hold (spaces, other scripts) is encoded.
        name: What errors call it.
        max_bytes: The most bytes to take; what comes beyond is not read.
        timeout: Seconds for all of it: the name lookup, the redirects and a server that sends byte by byte as well.

    Raises:
        ImageFetchError: The picture does not come, or not in time.
        ImageTooLargeError: It has more than `max_bytes` bytes.
        UnsupportedImageError: The URL holds a user name or a password.
    """
    fetch = _Fetch(url, name, max_bytes, timeout)
    answers: queue.SimpleQueue[io.BytesIO | Exception] = queue.SimpleQueue()
    # A name lookup knows no time limit, and a socket has one for each read: the whole is limited only from outside.
    threading.Thread(target=lambda: answers.put(fetch.run()), name=f"download of {name}", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise ImageFetchError(name, f"the picture has not come within {timeout:g} s") from None
    finally:
        fetch.stop()
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Fetch:
    """One download, in a thread of its own."""

    def __init__(self, url: str, name: str, max_bytes: int, timeout: float) -> None:
        self.url, self.name, self.max_bytes, self.timeout = url, name, max_bytes, timeout
        self.stopped = False
        self.connections: list[HTTPConnection] = []
        self.opener = OpenerDirector()
        for handler in (ProxyHandler(), _Http(self.connections), _Https(self.connections)):
            self.opener.add_handler(handler)

    def run(self) -> io.BytesIO | Exception:
        try:
            return self._follow()
        except ImageError as error:
            return error
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, TimeoutError):
                return ImageFetchError(self.name, f"the server has not answered within {self.timeout:g} s")
            return ImageFetchError(self.name, f"the picture cannot be fetched ({reason or type(error).__name__})")
        except Exception as error:  # what nobody takes out of the queue would look like a slow server
            return error

    def stop(self) -> None:
        """Ends the thread where it is still waiting."""
        self.stopped = True
        for connection in self.connections:
            sock = connection.sock  # None once the answer has begun: `_read` looks at `stopped`
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # not connected any more
                    continue

    def _follow(self) -> io.BytesIO:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            request = Request(self._encode(url), headers=_HEADERS)
            with cast(HTTPResponse, self.opener.open(request, timeout=self.timeout)) as response:
                if response.status not in _REDIRECTS:
                    return self._read(response)
                location = response.headers.get("Location", "")
                with contextlib.suppress(UnicodeError):  # http.client takes headers for Latin-1
                    location = location.encode("latin-1").decode("utf-8")
                url = urljoin(url, location)
        raise ImageFetchError(self.name, f"the server redirects more than {MAX_REDIRECTS} times")

    def _encode(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme.lower() not in ("http", "https"):
            raise ImageFetchError(self.name, f"the server redirects to a URL of {parts.scheme}, which is not read")
        if "@" in parts.netloc:
            raise UnsupportedImageError(self.name, "a URL with a user name or a password is not read")
        if not parts.hostname:
            raise ImageFetchError(self.name, "the URL names no server")
        host = parts.netloc.encode("idna").decode()
        return parts._replace(
            netloc=host, path=quote(parts.path, "/%:@!$&'()*+,;=~"), query=quote(parts.query, "/%:@!$&'()*+,;=~?"),
            fragment="",
        ).geturl()  # fmt: skip

    def _read(self, response: HTTPResponse) -> io.BytesIO:
        if response.status != 200:
            raise ImageFetchError(self.name, f"the server answers {response.status} {response.reason}".rstrip())
        too_large = ImageTooLargeError(self.name, f"the file has more than {self.max_bytes} bytes, which is the limit")
        if (response.length or 0) > self.max_bytes:
            raise too_large
        content = io.BytesIO()
        while not self.stopped and (chunk := response.read1(1 << 16)):
            content.write(chunk)
            if content.tell() > self.max_bytes:
                raise too_large
        if response.length:
            raise ImageFetchError(self.name, f"the connection ended {response.length} bytes before the file's end")
        content.seek(0)
        return content


def _connect(kind: type[HTTPConnection], connections: list[HTTPConnection], host: str, **options) -> HTTPConnection:
    connection = kind(host, **options)
    connections.append(connection)
    return connection


class _Http(HTTPHandler):
    def __init__(self, connections: list[HTTPConnection]) -> None:
        super().__init__()
        self.connect = functools.partial(_connect, HTTPConnection, connections)

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self.connect, req)


class _Https(HTTPSHandler):
    def __init__(self, connections: list[HTTPConnection]) -> None:
        super().__init__()
        self.connect = functools.partial(_connect, HTTPSConnection, connections)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self.connect, req)


__all__ = ["MAX_REDIRECTS", "download"]
