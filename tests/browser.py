"""Headless Chromium: how a page looks at some width."""

import html
import json
import re
import shutil
import subprocess
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
