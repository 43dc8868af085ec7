"""Headless Chromium: how a page looks at some width, and what it says of files."""

import functools
import html
import json
import queue
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# The page is shown in a frame, for the browser's own window cannot be made as narrow as a phone.
_FRAME = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<pre id="found" hidden></pre>
<script>
function measure() {{
  const page = document.getElementById("frame").contentDocument;
  const texts = [...page.querySelectorAll("body *")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType == 3 && node.data.trim()));
  const scale = (element) => element.ownerSVGElement ?
    element.ownerSVGElement.getBoundingClientRect().width / element.ownerSVGElement.viewBox.baseVal.width : 1;
  const size = (element) => parseFloat(page.defaultView.getComputedStyle(element).fontSize) * scale(element);
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.clientWidth,
    scroll_width: page.documentElement.scrollWidth,
    height: page.documentElement.scrollHeight,
    images: page.images.length,
    broken_images: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
    smallest_text: Math.min(...texts.filter((element) => element.tagName != "title").map(size)),
    beyond_edge: texts.filter((element) => element.getBoundingClientRect().right > {width} + 1)
      .map((element) => element.textContent.slice(0, 40)),
  }});
}}
</script>
<iframe id="frame" width="{width}" height="{height}" onload="measure()" srcdoc="{page}"></iframe>
"""


def find_chromium() -> str:
    """The program; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("there is no Chromium on the PATH")


def look_at(page: Path, width: int, folder: Path, height: int = 900) -> dict[str, Any]:
    """Lays a page out, `width` CSS pixels wide, and takes a screenshot of its first `height`.

    Args:
        page: an HTML file that needs no other.
        width, height: of the screen.
        folder: gets `WIDTH.html`, what was shown, and `WIDTH.png`, the screenshot.

    Returns:
        `width`, `scroll_width` and `height` of the page; how many `images` it has and how many are `broken_images`;
        the `smallest_text`, in CSS pixels; and the beginnings of texts that go `beyond_edge`.
    """
    frame = folder / f"{width}.html"
    text = html.escape(page.read_text(encoding="utf-8"))
    frame.write_text(_FRAME.format(width=width, height=height, page=text), encoding="utf-8")
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    command += ["--virtual-time-budget=10000", frame.as_uri()]
    subprocess.run([*command, f"--screenshot={folder / f'{width}.png'}"], check=True, capture_output=True, timeout=120)
    run = subprocess.run([*command, "--dump-dom"], check=True, capture_output=True, timeout=120, text=True)
    found = re.search(r'<pre id="found" hidden="">(.+?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stderr
    return json.loads(html.unescape(found[1]))


# Chooses one file after the other in the page's input, and posts what the page says of each.
_CHOOSER = """<!doctype html><meta charset="utf-8">
<iframe id="frame" src="index.html"></iframe>
<script type="module">
const photos = {photos};
const frame = document.getElementById("frame");
await new Promise((loaded) => frame.addEventListener("load", loaded));
const page = frame.contentDocument;
const output = page.querySelector("output");
const input = page.querySelector("input");
const state = (...states) => new Promise((reached) => {{
  const timer = setInterval(() => {{
    if (states.includes(output.dataset.state)) {{ clearInterval(timer); reached(output.dataset.state); }}
  }}, 20);
}});
const texts = [];
if (await state("ready", "failed") === "failed") texts.push(output.textContent);
else for (const photo of photos) {{
  const chosen = new DataTransfer();
  chosen.items.add(new File([await (await fetch(photo)).blob()], photo));
  input.files = chosen.files;
  input.dispatchEvent(new Event("change"));
  await state("done", "failed");
  texts.push(output.textContent);
  output.dataset.state = "seen";
}}
await fetch("texts", {{ method: "POST", body: JSON.stringify(texts) }});
</script>
"""


class _Chooser(SimpleHTTPRequestHandler):
    texts: "queue.Queue[list[str]]"

    def do_POST(self) -> None:
        self.texts.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def choose_files(site: Path, photos: list[str], seconds: float = 300) -> list[str]:
    """What a page's `output` says after each of some files is chosen in its `input`.

    Args:
        site: The folder of `index.html`, which is served on the loopback. Gets the browser's own files.
        photos: Names of files in it.
        seconds: How long to wait for all of them.
    """
    (site / "chooser.html").write_text(_CHOOSER.format(photos=json.dumps(photos)), encoding="utf-8")
    handler = type("Handler", (_Chooser,), {"texts": queue.Queue()})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={site / 'profile'}", "--remote-debugging-port=0"]
        command += [f"http://127.0.0.1:{server.server_port}/chooser.html"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                return handler.texts.get(timeout=seconds)
            finally:
                browser.terminate()
                server.shutdown()
