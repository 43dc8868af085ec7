"""Headless Chromium that a test drives, by the DevTools protocol over a pipe."""

import base64
import itertools
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser import find_chromium


class LiveBrowser:
    """A window of a browser, until the `with` block ends.

    Attributes:
        requested: The URLs that the page has asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.requested: list[str] = []
        self._numbers = itertools.count(1)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={folder / 'profile'}", "--no-first-run", "about:blank"]

        def take_pipes() -> None:  # the browser reads from 3 and writes to 4
            os.dup2(to_browser, 103)
            os.dup2(from_browser, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=take_pipes,
            close_fds=False,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._reader = os.fdopen(self._in, "rb")
        self._session: str | None = None

    def __enter__(self) -> "LiveBrowser":
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.close()
        os.close(self._out)

    def open(self, url: str, width: int, height: int = 900) -> None:
        """Opens a page in a window of a size in CSS pixels; up to 500 wide it is that of a phone."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= 500
        )
        self._call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript; a promise is waited for."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 300) -> Any:
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"{expression} has not become true: {self.run('document.body.innerText')}"
            time.sleep(0.2)
        return value

    def click(self, selector: str, text: str) -> None:
        """Clicks the element with this text, once there is one, among those that a CSS selector finds."""
        found = f"[...document.querySelectorAll('{selector}')].find(e => e.innerText.trim() == '{text}')"
        self.wait_for(f"{found} != null")
        self.run(f"{found}.click()")

    def upload(self, selector: str, files: Sequence[Path]) -> None:
        """Chooses files for the `<input type="file">` that a CSS selector finds first."""
        document = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        assert node, selector
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, file: Path) -> None:
        """Writes a picture of the whole page."""
        content = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(content))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "the browser has ended"
            content += byte
        return json.loads(content)
