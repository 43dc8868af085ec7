"""An evaluation's numbers as a table for the terminal, values x 100 as papers print them."""

from collections.abc import Iterator

from ..core.console import printable
from ..metrics.bootstrap import Interval
from ..metrics.names import METRIC_NAMES, TOKEN_NAMES
from .result import Comparison, Evaluation


def evaluation_table(evaluation: Evaluation) -> str:
    """Returns the table: several lines, without a line end after the last one."""
    lines = [*_head(evaluation), *_scores(evaluation), *_diversity(evaluation)]
    if evaluation.comparison:
        lines += ["", *_comparison(evaluation.comparison)]
    return "\n".join(map(printable, lines))


def _head(evaluation: Evaluation) -> Iterator[str]:
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.generation.items())
    yield f"{evaluation.counted} of {evaluation.data}, captions of {evaluation.name}" + (
        f" ({settings})" if settings else ""
    )
    yield from (f"Note: {note}" for note in evaluation.notes)


def _scores(evaluation: Evaluation) -> Iterator[str]:
    yield f"{'x 100':23s}    value   95 % interval"
    if evaluation.vqa_accuracy is not None:
        yield _row("VQA accuracy", f"{100 * evaluation.vqa_accuracy:9.4f}", evaluation.intervals["vqa_accuracy"])
    for metric, value in evaluation.metrics.items():
        if value is not None:
            yield _row(METRIC_NAMES[metric], f"{100 * value:9.4f}", evaluation.intervals.get(metric))
    if evaluation.shuffled_cider is not None:
        value, interval = evaluation.shuffled_cider, evaluation.intervals["shuffled_cider"]
        yield _row("CIDEr, other images'", f"{100 * value:9.4f}", interval)


def _diversity(evaluation: Evaluation) -> Iterator[str]:
    diversity = evaluation.diversity
    if diversity.unseen is not None:
        yield _row("not a training caption", f"{100 * diversity.unseen:9.2f}", evaluation.intervals["unseen"])
    repeated = evaluation.intervals["repeated_4grams"]
    yield _row("repeated 4-grams", f"{100 * diversity.repeated_4grams:9.2f}", repeated)
    yield _row("distinct-1", f"{100 * diversity.distinct_1:9.2f}")
    yield _row("distinct-2", f"{100 * diversity.distinct_2:9.2f}")
    words = TOKEN_NAMES[evaluation.scores.tokenizer]
    yield _row(f"mean length, {words}", f"{diversity.mean_length:9.2f}", evaluation.intervals["mean_length"], scale=1)
    yield _row(f"vocabulary, {words}", f"{diversity.vocabulary:9,}")
    if evaluation.loss is not None:
        yield _row("loss, nats a token", f"{evaluation.loss:9.4f}")
    if evaluation.shuffled_loss is not None:
        yield _row("loss, other images", f"{evaluation.shuffled_loss:9.4f}")
    for reason, metrics in evaluation.not_computed_by_reason.items():
        yield f"not computed: {', '.join(METRIC_NAMES.get(metric, metric) for metric in metrics)}: {reason}"


def _comparison(comparison: Comparison) -> Iterator[str]:
    counts = comparison.counts
    yield f"against {comparison.name}, {len(comparison.rows):,} images"
    if comparison.leads.size:
        yield f"by CIDEr {counts['wins']:,} wins, {counts['losses']:,} losses, {counts['ties']:,} ties"
    yield f"{'x 100':23s}    first     other   difference, 95 % interval (share of resamples with the other sign)"
    for metric in comparison.metrics:
        first, other = comparison.scores.corpus[metric], comparison.other_scores.corpus[metric]
        values = f"{100 * first:9.4f} {100 * other:9.4f}"
        line = f"{METRIC_NAMES[metric]:23s}{values}   {100 * (first - other):+8.4f}"
        if found := comparison.differences.get(metric):
            line += f"   {100 * found.low:+.2f} to {100 * found.high:+.2f} ({found.other_sign:.3f})"
        yield line


def _row(name: str, value: str, interval: Interval | None = None, scale: int = 100) -> str:
    spread = f"   {scale * interval.low:.2f} to {scale * interval.high:.2f}" if interval else ""
    return f"{name:23s}{value}{spread}"
