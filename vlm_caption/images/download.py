"""Fetches pictures from the web, with limits on their size and on the time they take.

Nothing but the URL is sent: no cookies and no credentials. Proxies are taken from the environment (`https_proxy`, …).
"""

import asyncio
import io
import queue
import threading

import httpx2

from ..core.errors import ImageError, ImageFetchError, ImageTooLargeError, UnsupportedImageError

MAX_REDIRECTS = 5

# Some sites refuse the name of an HTTP library.
_HEADERS = {"User-Agent": "vlm-caption", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}


def download(url: str, name: str, max_bytes: int, timeout: float) -> io.BytesIO:
    """Fetches the file that a URL of http or https names.

    Args:
        url: The URL. Characters that a URL may not hold (spaces, other scripts) are encoded.
        name: What errors call it.
        max_bytes: The largest number of bytes to accept; no more are read.
        timeout: Seconds for the whole download: the name lookup, the redirects, and a server that sends byte by byte.

    Raises:
        ImageFetchError: The picture does not come, or not in time.
        ImageTooLargeError: It has more than `max_bytes` bytes.
        UnsupportedImageError: The URL holds a user name or a password.
    """
    answers: queue.SimpleQueue[io.BytesIO | Exception] = queue.SimpleQueue()
    fetch = _Fetch(name, max_bytes, timeout)
    # In a thread, because the caller may run an event loop, and because nothing interrupts a name lookup.
    threading.Thread(
        target=lambda: asyncio.run(fetch.run(url, answers)), name=f"download of {name}", daemon=True
    ).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise fetch.too_late() from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Fetch:
    """One download."""

    def __init__(self, name: str, max_bytes: int, timeout: float) -> None:
        self.name, self.max_bytes, self.timeout = name, max_bytes, timeout

    async def run(self, url: str, answers: "queue.SimpleQueue[io.BytesIO | Exception]") -> None:
        """Puts the file's content, or an error, into `answers`."""
        try:
            async with asyncio.timeout(self.timeout):
                answers.put(await self._fetch(url))
        except ImageError as error:
            answers.put(error)
        except (TimeoutError, httpx2.TimeoutException):
            answers.put(self.too_late())
        except httpx2.TooManyRedirects:
            answers.put(ImageFetchError(self.name, f"the server redirects more than {MAX_REDIRECTS} times"))
        except Exception as error:  # httpx's own, InvalidURL, a proxy that is misspelt, OSError, UnicodeError
            reason = str(error) or type(error).__name__
            answers.put(ImageFetchError(self.name, f"the picture cannot be fetched ({reason})"))

    def too_late(self) -> ImageFetchError:
        return ImageFetchError(self.name, f"the picture has not come within {self.timeout:g} s")

    async def _fetch(self, url: str) -> io.BytesIO:
        client = httpx2.AsyncClient(
            headers=_HEADERS,
            timeout=None,  # the whole has one
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            event_hooks={"request": [self._check]},
        )
        async with client, client.stream("GET", url) as response:
            return await self._read(response)

    async def _check(self, request: httpx2.Request) -> None:
        """Refuses a request, the first one or one after a redirect, that is not a plain one over HTTP."""
        request.headers.pop("Cookie", None)
        if request.url.scheme not in ("http", "https"):
            raise ImageFetchError(
                self.name, f"the server redirects to a URL of {request.url.scheme}, which is not read"
            )
        if request.url.userinfo:
            raise UnsupportedImageError(self.name, "a URL with a user name or a password is not read")
        if not request.url.host:
            raise ImageFetchError(self.name, "the URL names no server")

    async def _read(self, response: httpx2.Response) -> io.BytesIO:
        if response.status_code != 200:
            answer = f"{response.status_code} {response.reason_phrase}".rstrip()
            raise ImageFetchError(self.name, f"the server answers {answer}")
        length = int(response.headers.get("Content-Length", 0))
        content = io.BytesIO()
        try:
            if length <= self.max_bytes:
                async for chunk in response.aiter_bytes():
                    content.write(chunk)
                    if content.tell() > self.max_bytes:
                        break
        except httpx2.RemoteProtocolError as error:
            missing = f"{length - content.tell()} bytes" if length else "some bytes"
            raise ImageFetchError(self.name, f"the connection ended {missing} before the file's end") from error
        if max(length, content.tell()) > self.max_bytes:
            raise ImageTooLargeError(self.name, f"the file has more than {self.max_bytes} bytes, which is the limit")
        content.seek(0)
        return content


__all__ = ["MAX_REDIRECTS", "download"]
