"""An evaluation as one self-contained web page: numbers with intervals, lengths, and pictures beside captions."""

import html
import os
import random
from collections.abc import Iterable, Sequence

import numpy as np

from .data import PictureOpener
from .evaluation import Comparison, Evaluation
from .gallery import STYLE, picture_tag, write_page
from .images import MAX_BYTES, MAX_PIXELS, ImageError
from .metrics import METRIC_NAMES, Interval, tokenize

# The longer side of a picture in pixels: twice as wide as it is shown, for sharp screens.
_THUMBNAIL_SIZE = 480

_NAMES = METRIC_NAMES | {"unseen": "share of captions that are no training captions"}

_STYLE = """
:root { --own: #c2410c; --other: #64748b; }
@media (prefers-color-scheme: dark) { :root { --own: #fb923c; --other: #94a3b8; } }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; overflow-wrap: anywhere; }
section { min-width: 0; }
.top h2 { margin-top: .5rem; }
section > p { margin: 0 0 1rem; max-width: 44rem; color: var(--dim); }
header p { overflow-wrap: anywhere; }
.note { margin: 1rem 0 0; padding: .75rem 1rem; max-width: 44rem; background: var(--card); color: var(--text);
  border-left: .25rem solid var(--own); border-radius: .25rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { color: var(--dim); font-weight: normal; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
td:first-child { overflow-wrap: anywhere; }
.scores span { white-space: nowrap; }
.spread { color: var(--dim); font-size: .875rem; white-space: nowrap; }
table + p { margin: .75rem 0 0; max-width: 44rem; font-size: .875rem; color: var(--dim); overflow-wrap: anywhere; }
.top { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 4rem; }
.histogram { display: block; width: 100%; max-width: 34rem; height: auto; }
.sheet { margin-bottom: 1rem; }
.sheet .caption b { display: block; font-size: .8rem; font-weight: normal; color: var(--dim); }
.caption + .caption { margin-top: .6rem; }
.own { border-left: .2rem solid var(--own); padding-left: .6rem; }
.other { border-left: .2rem solid var(--other); padding-left: .6rem; }
.scores { margin: .5rem 0 0; font-size: .875rem; color: var(--dim); font-variant-numeric: tabular-nums; }
figcaption ul { margin: .6rem 0 0; padding-left: 1.1rem; font-size: .875rem; color: var(--dim); }
.lost { margin: 0; padding: 2rem 1.25rem; background: var(--line); color: var(--dim); font-size: .875rem; }
""".strip()


def write_report(
    path: str | os.PathLike,
    evaluation: Evaluation,
    *,
    examples: int = 8,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write the page. It needs no other file and no network; pictures that are gone are said to be.

    Args:
        path: Where to write it.
        evaluation: What it is about.
        examples: How many images of each kind: best, worst, random, won, lost.
        seed: Of the random ones.
        max_pixels, max_bytes: The limits of `open_image`.

    Raises:
        OSError: The page cannot be written.
    """
    cards = _Cards(evaluation, PictureOpener(max_pixels, max_bytes))
    rows = range(len(evaluation.image_ids))
    sections = [f'<div class="top">\n{_numbers(evaluation)}\n{_lengths(evaluation)}\n</div>']
    if evaluation.comparison:
        sections += _compared(evaluation.comparison, cards, examples)
    if "cider" in evaluation.scores.per_image:
        order = np.argsort(evaluation.scores.per_image["cider"], kind="stable").tolist()
        count = min(examples, len(order) // 2)
        by_cider = "By CIDEr of the image. References do not say all that is right: look before you believe it."
        sections.append(_sheet("Best", by_cider, map(cards.single, order[::-1][:count])))
        sections.append(_sheet("Worst", by_cider, map(cards.single, order[:count])))
    drawn = random.Random(seed).sample(rows, min(examples, len(rows)))
    sections.append(_sheet("Random", "Drawn by chance: what to expect.", map(cards.single, drawn)))
    notes = "\n".join(f'<p class="note">{html.escape(note)}</p>' for note in evaluation.notes)
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.generation.items())
    about = f"{evaluation.counted} of {evaluation.data}; captions of {evaluation.name}"
    body = f"""<header>
<h1>Captions scored</h1>
<p>{html.escape(about)}{html.escape(f" ({settings})") if settings else ""}</p>
{notes}
</header>
<main>
{_join(sections)}
</main>"""
    write_page(path, f"Captions scored: {evaluation.name}", f"{STYLE}\n{_STYLE}", body)


def _numbers(evaluation: Evaluation) -> str:
    lines = [
        _line(METRIC_NAMES[metric], f"{100 * value:.2f}", evaluation.intervals.get(metric))
        for metric, value in evaluation.metrics.items()
        if value is not None
    ]
    intervals, diversity = evaluation.intervals, evaluation.diversity
    if evaluation.shuffled_cider is not None:
        value = f"{100 * evaluation.shuffled_cider:.2f}"
        lines.append(_line("CIDEr with other images' references", value, intervals["shuffled_cider"]))
    if evaluation.loss is not None:
        lines.append(_line("loss, nats a token", f"{evaluation.loss:.3f}"))
    if evaluation.shuffled_loss is not None:
        lines.append(_line("loss with other images", f"{evaluation.shuffled_loss:.3f}"))
    if diversity.unseen is not None:
        lines.append(_line("no training caption, %", f"{100 * diversity.unseen:.1f}", intervals["unseen"]))
    repeated = intervals["repeated_4grams"]
    lines.append(_line("repeated runs of four words, %", f"{100 * diversity.repeated_4grams:.2f}", repeated))
    lines.append(_line("distinct-1", f"{100 * diversity.distinct_1:.2f}"))
    lines.append(_line("distinct-2", f"{100 * diversity.distinct_2:.2f}"))
    lines.append(_line("different words", f"{diversity.vocabulary:,}"))
    lines.append(_line("words a caption", f"{diversity.mean_length:.2f}", intervals["mean_length"], scale=1))
    missing = "; ".join(
        f"{', '.join(_NAMES.get(metric, metric) for metric in metrics)}: {reason}"
        for reason, metrics in evaluation.not_computed_by_reason.items()
    )
    return f"""<section>
<h2>Numbers</h2>
<p>Scores times 100, as papers print them, with bootstrap intervals over the images.</p>
<table>
<tr><th>metric</th><th>value</th><th class="spread">95 % interval</th></tr>
{_join(lines)}
</table>
{f"<p>Not computed: {html.escape(missing)}.</p>" if missing else ""}
</section>"""


def _line(name: str, value: str, interval: Interval | None = None, scale: int = 100) -> str:
    spread = f"{scale * interval.low:.2f} to {scale * interval.high:.2f}" if interval else ""
    return f'<tr><td>{html.escape(name)}</td><td>{value}</td><td class="spread">{spread}</td></tr>'


def _lengths(evaluation: Evaluation) -> str:
    """How many words captions and references have, as shares, in an inline SVG."""
    own = evaluation.diversity.lengths
    tokens = tokenize([text for texts in evaluation.references for text in texts])
    theirs = np.array([len(text.split()) for text in tokens])
    # The few longest are counted with the last bar, lest they squeeze the others.
    last = max(int(np.quantile(np.concatenate([own, theirs]), 0.995)), 1)
    bars = [np.bincount(np.minimum(lengths, last), minlength=last + 1) / len(lengths) for lengths in (own, theirs)]
    width, height, left, bottom, top = 420, 260, 8, 56, 40  # in units of the picture
    step = (width - 2 * left) / (last + 1)
    highest = max(series.max() for series in bars)

    def bar(length: int, share: float, colour: str, shift: float) -> str:
        size = share / highest * (height - top - bottom)
        return (
            f'<rect x="{left + step * (length + shift):.1f}" y="{height - bottom - size:.1f}" '
            f'width="{0.4 * step:.1f}" height="{size:.1f}" fill="var(--{colour})"/>'
        )

    shapes = [
        bar(length, share, colour, shift)
        for series, colour, shift in zip(bars, ("own", "other"), (0.08, 0.52), strict=True)
        for length, share in enumerate(series)
        if share
    ]
    every = max(1, -(-(last + 1) // 8))
    longer = f" (the last bar: {last} or more)" if max(own.max(), theirs.max()) > last else ""
    labels = [
        f'<text x="{left + step * (length + 0.5):.1f}" y="{height - bottom + 20}" text-anchor="middle">{length}</text>'
        for length in range(0, last + 1, every)
    ]
    return f"""<section>
<h2>Lengths</h2>
<p>Captions have {own.mean():.1f} words on average, references {theirs.mean():.1f}.</p>
<svg class="histogram" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" font-size="16"
 fill="var(--text)">
<title>Share of captions and of references by their number of words</title>
<rect x="{left}" y="8" width="14" height="14" fill="var(--own)"/>
<text x="{left + 22}" y="20">captions</text>
<rect x="{left + 120}" y="8" width="14" height="14" fill="var(--other)"/>
<text x="{left + 142}" y="20">references</text>
<path d="M{left} {height - bottom}H{width - left}" stroke="var(--line)"/>
{_join(shapes + labels)}
<text x="{width / 2}" y="{height - 10}" text-anchor="middle">words{longer}</text>
</svg>
</section>"""


def _compared(comparison: Comparison, cards: "_Cards", examples: int) -> list[str]:
    lines = []
    for metric in comparison.metrics:
        first, other = (100 * scores.corpus[metric] for scores in (comparison.scores, comparison.other_scores))
        difference = f"{first - other:+.2f}"
        if found := comparison.differences.get(metric):
            difference += f'<br><span class="spread">{100 * found.low:+.2f} to {100 * found.high:+.2f}</span>'
        lines.append(
            f"<tr><td>{METRIC_NAMES[metric]}</td><td>{first:.2f}</td><td>{other:.2f}</td><td>{difference}</td></tr>"
        )
    counts = comparison.counts
    by_cider = (
        f"By CIDEr {counts['wins']:,} wins, {counts['losses']:,} losses and {counts['ties']:,} ties. "
        if comparison.leads.size
        else ""
    )
    sections = [
        f"""<section>
<h2>Beside {html.escape(comparison.name)}</h2>
<p>{by_cider}The interval is of the difference, by a paired bootstrap over {len(comparison.rows):,} images: one that
holds 0 shows no difference.</p>
<table>
<tr><th>metric</th><th>first</th><th>other</th><th>difference</th></tr>
{_join(lines)}
</table>
</section>"""
    ]
    leads = comparison.leads
    order = np.argsort(leads, kind="stable").tolist()
    won = [place for place in order[::-1] if leads[place] > 0][:examples]
    lost = [place for place in order if leads[place] < 0][:examples]
    for title, note, places in (
        ("Wins", "Where the first is better by most, in CIDEr.", won),
        ("Losses", "Where the other is better by most, in CIDEr.", lost),
    ):
        if places:
            sections.append(_sheet(title, note, map(cards.pair, places)))
    return sections


def _sheet(title: str, note: str, figures: Iterable[str]) -> str:
    return f"""<section>
<h2>{title}</h2>
<p>{note}</p>
<div class="sheet">
{_join(figures)}
</div>
</section>"""


class _Cards:
    """Makes a figure of an image."""

    def __init__(self, evaluation: Evaluation, open_picture: PictureOpener):
        self.evaluation, self.open_picture = evaluation, open_picture

    def single(self, row: int) -> str:
        """With the caption and its scores."""
        scores = self.evaluation.scores.per_image
        shown = [metric for metric in ("cider", "bleu_4", "rouge_l") if metric in scores]
        values = " · ".join(f"<span>{METRIC_NAMES[metric]} {100 * scores[metric][row]:.0f}</span>" for metric in shown)
        caption = f'<p class="caption">{html.escape(self.evaluation.captions[row])}</p>'
        return self._figure(row, f'{caption}\n<p class="scores">{values}</p>')

    def pair(self, place: int) -> str:
        """With both systems' captions, of the so-manieth image that both captioned."""
        comparison = self.evaluation.comparison
        assert comparison is not None
        row = comparison.rows[place]
        captions = (self.evaluation.captions[row], comparison.captions[place])
        scores = (comparison.scores, comparison.other_scores)
        texts = [
            f'<p class="caption {kind}"><b>{name}, CIDEr {100 * values.per_image["cider"][place]:.0f}</b>'
            f"{html.escape(caption)}</p>"
            for kind, name, caption, values in zip(("own", "other"), ("first", "other"), captions, scores, strict=True)
        ]
        return self._figure(row, "\n".join(texts))

    def _figure(self, row: int, texts: str) -> str:
        evaluation = self.evaluation
        references = _list(evaluation.references[row])
        return f"""<figure>
{self._picture(row)}
<figcaption>{texts}
{references}
<p class="file">{html.escape(str(evaluation.image_ids[row]))}</p></figcaption>
</figure>"""

    def _picture(self, row: int) -> str:
        image = self.evaluation.images[row]
        if image is None:
            return ""
        try:
            return picture_tag(self.open_picture(image), self.evaluation.captions[row], _THUMBNAIL_SIZE)
        except ImageError as error:  # it was there when its features were computed
            return f'<p class="lost">{html.escape(str(error))}</p>'


def _list(texts: Sequence[str]) -> str:
    items = _join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul>\n{items}\n</ul>"


def _join(parts: Iterable[str]) -> str:
    return "\n".join(parts)
