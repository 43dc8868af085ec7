"""What a command says on the terminal: progress, log lines, one-sentence errors, and nothing from transformers."""

import argparse
import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Generator, Iterable
from typing import NoReturn, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 10.0


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that reports bad usage in one line, without the usage text; exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive_int(text: str) -> int:
    """An argument of at least 1, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: It is anything else.
    """
    if not (_is_whole(text) and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"give a whole number of at least 1, not {text!r}")
    return int(text)


def natural_int(text: str) -> int:
    """An argument of at least 0, likewise.

    Raises:
        argparse.ArgumentTypeError: It is anything else.
    """
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"give a whole number, 0 or more, not {text!r}")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # int() also takes "1_0" and " 1 "


def progress(
    iterable: Iterable[Item], total: int | None = None, desc: str = "", file: TextIO | None = None
) -> Iterable[Item]:
    """Pass the items on and say on stderr how far they are.

    On a terminal that is a bar. Elsewhere, such as in a log file, it is a line at most every 10 seconds and one at the
    end, with the count, the total, the items a second and the time left.

    Args:
        iterable: The items.
        total: How many there are; by default `len(iterable)`, where it has one.
        desc: What stands before the count.
        file: Where to say it instead, such as the stderr of before `quiet_transformers`.
    """
    if (file or sys.stderr).isatty():
        return tqdm(iterable, desc=desc, total=total, file=file or sys.stderr)
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(iterable)  # ty: ignore[invalid-argument-type]
    return _progress_lines(iterable, total, desc, file)


def _progress_lines(iterable: Iterable[Item], total: int | None, desc: str, file: TextIO | None) -> Generator[Item]:
    start = last = time.monotonic()
    count, said = 0, None

    def say(now: float) -> None:
        done = f"{count}" if total is None else f"{count}/{total}"
        rate = count / max(now - start, 1e-9)
        left = f", {tqdm.format_interval((total - count) / rate)} left" if total and 0 < count < total else ""
        print(f"{desc}{': ' if desc else ''}{done}, {rate:.3g}/s{left}", file=file or sys.stderr, flush=True)

    for item in iterable:
        yield item
        count += 1  # here the caller is done with it
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            say(now)
            last, said = now, count
    if said != count:
        say(time.monotonic())


def describe_seconds(seconds: float) -> str:
    """How long something takes, for people: "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Keep the progress bars and warnings of transformers off the terminal; errors are raised as ever.

    All that goes to `sys.stderr` meanwhile is lost, but for the log lines of [`setup_logging`].
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    verbosities = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # The GGUF reader draws its bar with tqdm itself, which asks neither of the settings above.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosities[0])
        hub_logging.set_verbosity(verbosities[1])
        if bars:
            transformers_logging.enable_progress_bar()


def is_first_process() -> bool:
    """Whether this is the one that speaks and writes, of those that torchrun or accelerate started together."""
    return os.environ.get("RANK", "0") == "0"


def setup_logging() -> None:
    """Print this package's log messages, from INFO up, as plain lines on stderr. Calling it again changes nothing."""
    handler = logging.StreamHandler()  # bound to the stderr of this moment, which quiet_transformers does not reach
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def first_line_of(error: Exception) -> str:
    """What a library's exception says in its first line, for a sentence of ours; its class where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
