"""An inspection as text for people."""

from collections.abc import Iterator

from .facts import Spread
from .result import LONG_SIDES, SMALL_SIDE, Inspection

_NAMED = 3  # of each kind of finding


def describe(inspection: Inspection) -> Iterator[str]:
    """Yields the lines of the text for people."""
    yield f"{inspection.path} ({inspection.format})"
    yield ""
    yield from _table_lines(inspection)
    if inspection.no_tokens:
        yield f"tokens: not counted: {inspection.no_tokens}"
    for what, count in inspection.dropped.items():
        if count:
            yield f"left out by the settings: {count:,} {what}"
    yield ""
    yield from _finding_lines(inspection)
    yield ""
    if inspection.refusal is None:
        yield "Training would take this data."
    else:
        yield f"Training would refuse this data: {inspection.refusal}"
        yield from (f"    and then: {refusal}" for refusal in inspection.later_refusals)


def _table_lines(inspection: Inspection) -> Iterator[str]:
    """Yields a table of the numbers, with a column for each split."""
    columns = dict(inspection.splits)
    if len(columns) != 1:
        columns["all"] = inspection.all
    rows = [("", *columns)]
    for name, show in (
        ("images", lambda facts: f"{facts.images:,}"),
        ("missing", lambda facts: f"{facts.missing:,}"),
        ("unreadable", lambda facts: f"{facts.unreadable:,}"),
        ("captions", lambda facts: f"{facts.captions:,}"),
        ("different ones", lambda facts: f"{facts.different_captions:,}"),
        ("captions an image", lambda facts: _show_histogram(facts.captions_per_image)),
        ("words a caption", lambda facts: _show(facts.words)),
        ("tokens a caption", lambda facts: _show(facts.tokens)),
        (f"more than {inspection.max_caption_tokens} tokens", lambda facts: _show(facts.too_long)),
        ("width", lambda facts: _show(facts.width)),
        ("height", lambda facts: _show(facts.height)),
    ):
        rows.append((name, *map(show, columns.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
    yield "least / mean / greatest; width and height in pixels"


def _finding_lines(inspection: Inspection) -> Iterator[str]:
    """Yields how many findings of each kind there are, and the first of them."""
    copies = [" = ".join(f"{file} ({split})" for split, file in group) for group in inspection.same_bytes]
    cut = f"captions cut at {inspection.max_caption_tokens} tokens"
    across = [" = ".join(f"{file} ({split})" for split, file in group) for group in inspection.in_two_splits]
    for what, found in (
        ("problems", inspection.problems),
        ("missing images", inspection.missing),
        ("unreadable images", inspection.unreadable),
        ("images with copies, byte for byte", copies),
        ("images with copies in two splits", across),
        (f"images with a side below {SMALL_SIDE} pixels", inspection.small),
        (f"images more than {LONG_SIDES} times as long as wide", inspection.elongated),
        ("pictures that the corpus does not mention", inspection.without_caption),
        ("images whose names differ only by case", [" = ".join(files) for files in inspection.same_names]),
        (
            "texts that several pictures share",
            [f"{text}: {', '.join(images)}" for text, images in inspection.shared_texts.items()],
        ),
        ("odd captions", inspection.odd_captions),
        *([] if inspection.no_tokens else [(cut, inspection.cut_captions)]),
        ("captions that occur often", [f"{count:,} x {caption}" for caption, count in inspection.common_captions]),
    ):
        if what != "captions that occur often":
            yield f"{what}: {len(found):,}"
        elif found:
            yield f"{what}:"
        yield from (f"    {entry}" for entry in found[:_NAMED])


def _show(value: Spread | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _show_histogram(images: dict[int, int]) -> str:
    if not images:
        return "-"
    mean = sum(count * number for count, number in images.items()) / sum(images.values())
    return str(Spread(min(images), mean, mean, max(images)))
