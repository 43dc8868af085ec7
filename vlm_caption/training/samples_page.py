"""`samples.html`: how the captions of a few dev images changed while a model was trained."""

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.bad_images import PictureOpener
from ..pages.gallery import STYLE, picture_tag, write_page
from .dev_scores import first_references, row_name

_THUMBNAIL_SIZE = 720

_TABLE_STYLE = """
figure { align-items: start; }
figure.bare { grid-template-columns: 1fr; }
figcaption { align-self: start; }
.question { margin: 0 0 .5rem; color: var(--dim); }
.references { margin: .9rem 0 0; padding: 0; list-style: none; color: var(--dim); font-size: .9rem; line-height: 1.4; }
.references li + li { margin-top: .3rem; }
table { width: 100%; margin: 1rem 0 0; border-collapse: collapse; font-size: .95rem; line-height: 1.4; }
td { padding: .45rem 0; border-top: 1px solid var(--line); vertical-align: baseline; }
.step { width: 7.5rem; padding-right: 1rem; color: var(--dim); font-size: .85rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
tr.kept td { font-weight: 600; }
.mark { margin-left: .5rem; padding: .05rem .5rem; border: 1px solid var(--line); border-radius: 1rem;
  color: var(--dim); font-size: .75rem; font-weight: 400; white-space: nowrap; }
@media (max-width: 44rem) { .step { width: 5.5rem; padding-right: .75rem; } }
""".strip()


def write_samples_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
    kept_step: int,
    open_picture: PictureOpener | None,
) -> None:
    """Writes a page of dev images beside their captions at each step at which these were taken.

    It needs no other file and no network. Steps whose captions are the same share a line.

    Args:
        path: where to write it.
        rows: the images, as `image` (a place) and `captions`, the references; of `questions` the first is shown, with
            the answers to it. One that has no caption yet is left out.
        log: Trainer's `log_history`; entries with `step` and `samples` count.
        kept_step: the step whose weights are kept; it and the last one are marked.
        open_picture: within its limits. None: the captions are of vectors, and there are no pictures.

    Raises:
        ImageError: if a picture cannot be opened.
        OSError: if the page cannot be written.
    """
    figures = []
    for number, row in enumerate(rows):
        name = row_name(row["image"], is_vector=open_picture is None)
        captions = {
            entry["step"]: entry["samples"][number]["caption"]
            for entry in log
            # A run that was taken up again may have shown fewer images before.
            if "samples" in entry and len(entry["samples"]) > number and entry["samples"][number]["image"] == name
        }
        if captions:
            figures.append(_figure(row, name, sorted(captions.items()), kept_step, open_picture))
    title = "Captions of dev images during training"
    body = f"""<header>
<h1>{title}</h1>
<p>The weights of step {kept_step:,} are kept. Below their captions stand those of people, then what the model wrote
from step to step.</p>
</header>
<main>
{chr(10).join(figures)}
</main>"""
    write_page(path, title, f"{STYLE}\n{_TABLE_STYLE}", body)


def _figure(
    row: Mapping[str, Any],
    name: str,
    captions: list[tuple[int, str]],
    kept_step: int,
    open_picture: PictureOpener | None,
) -> str:
    kept = dict(captions).get(kept_step, captions[-1][1])
    lines = []
    for caption, group in itertools.groupby(captions, key=lambda pair: pair[1]):
        steps = [step for step, _ in group]
        span = f"step {steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        marks = [text for text, step in (("kept", kept_step), ("last", captions[-1][0])) if step in steps]
        tags = "".join(f'<span class="mark">{mark}</span>' for mark in marks)
        kind = ' class="kept"' if "kept" in marks else ""
        lines.append(f'<tr{kind}><td class="step">{span}</td><td>{html.escape(caption)}{tags}</td></tr>')
    references = "".join(f"<li>{html.escape(text)}</li>" for text in first_references(row))
    question = f'<p class="question">{html.escape(row["questions"][0])}</p>\n' if "questions" in row else ""
    start = '<figure class="bare">'
    if open_picture is not None:
        start = "<figure>\n" + picture_tag(open_picture(row["image"]), kept, _THUMBNAIL_SIZE)
    return f"""{start}
<figcaption>{question}<p class="caption">{html.escape(kept)}</p>
<ul class="references">{references}</ul>
<table>
{chr(10).join(lines)}
</table>
<p class="file">{html.escape(name)}</p></figcaption>
</figure>"""
