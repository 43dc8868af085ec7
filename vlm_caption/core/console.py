"""Output of commands on the terminal: progress, log lines, and errors of one sentence."""

import argparse
import contextlib
import io
import logging
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Generator, Iterable
from typing import Any, NoReturn, TextIO, TypeVar

from .interrupts import raise_if_stopped

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_SILENCE = 0.5


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that reports an error in one line, without the usage text.

    Attributes:
        options: All options so far, such as "--help".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.options: list[str] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Adds an argument; see `argparse.ArgumentParser.add_argument`."""
        action = super().add_argument(*args, **kwargs)
        self.options += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        """Reports bad usage and ends the program with exit code 2."""
        self.complain(message)
        self.exit(2)

    def complain(self, error: Exception | str, file: TextIO | None = None) -> None:
        """Prints an error in one line that begins with the name of the program.

        Args:
            error: The error.
            file: The stream to print to, by default `sys.stderr`.
        """
        print(f"{self.prog}: {printable(str(error))}", file=file or sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""Returns text with escapes in place of characters that could forge output or control the terminal.

    These are control characters, line ends, bytes of a file name that are not text, and marks that change the
    direction of writing. For example, a line feed becomes `\n`.

    Args:
        text: The name of a file, a caption, or another text of unknown origin.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_harmful(character) else character for character in text
    )


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
        unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    )


def positive_int(text: str) -> int:
    """Returns a whole number of at least 1; for the parameter `type` of `add_argument`.

    Raises:
        argparse.ArgumentTypeError: The text is anything else.
    """
    if not (_is_whole(text) and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"give a whole number of at least 1, not {text!r}")
    return int(text)


def natural_int(text: str) -> int:
    """Returns a whole number of at least 0; for the parameter `type` of `add_argument`.

    Raises:
        argparse.ArgumentTypeError: The text is anything else.
    """
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"give a whole number, 0 or more, not {text!r}")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # int() also takes "1_0" and " 1 "


def progress(
    iterable: Iterable[Item], total: int | None = None, desc: str = "", file: TextIO | None = None
) -> Iterable[Item]:
    """Yields the items, shows their progress, and ends between two items when a signal has arrived.

    A terminal gets a bar. Anything else, such as a log file, gets a line at most every 10 seconds and one at the end,
    with the count, the total, the items per second and the time left.

    Args:
        iterable: The items.
        total: The number of items, by default `len(iterable)` if it has a length.
        desc: A text before the count.
        file: The stream to write to, by default `sys.stderr`. Inside `quiet_transformers`, pass the original stderr.
    """
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(iterable)  # ty: ignore[invalid-argument-type]
    iterable = _stopping(iterable)
    if (file or sys.stderr).isatty():
        from tqdm import tqdm

        return tqdm(iterable, desc=desc, total=total, file=file or sys.stderr)
    return _progress_lines(iterable, total, desc, file)


def _stopping(iterable: Iterable[Item]) -> Generator[Item]:
    for item in iterable:
        raise_if_stopped()
        yield item


def _progress_lines(iterable: Iterable[Item], total: int | None, desc: str, file: TextIO | None) -> Generator[Item]:
    from tqdm import tqdm

    start = last = time.monotonic()
    count, said = 0, None

    def say(now: float) -> None:
        done = f"{count}" if total is None else f"{count}/{total}"
        rate = count / max(now - start, 1e-9)
        left = f", {tqdm.format_interval((total - count) / rate)} left" if total and 0 < count < total else ""
        print(f"{desc}{': ' if desc else ''}{done}, {rate:.3g}/s{left}", file=file or sys.stderr, flush=True)

    for item in iterable:
        yield item
        count += 1  # the caller has finished with the item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            say(now)
            last, said = now, count
    if said != count:
        say(time.monotonic())


def describe_seconds(seconds: float) -> str:
    """Returns a duration for people to read: "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@contextlib.contextmanager
def loading(what: str) -> Generator[None]:
    """Prints "Loading WHAT …" on a terminal if the block has not ended after half a second.

    Args:
        what: What the block loads.
    """
    stderr = sys.stderr
    if not stderr.isatty() or not is_first_process():
        yield
        return
    timer = threading.Timer(
        _SECONDS_OF_SILENCE, print, [f"Loading {printable(what)} …"], {"file": stderr, "flush": True}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Suppresses the progress bars and warnings of transformers. Exceptions are raised as usual.

    Everything else that is written to `sys.stderr` in the block is lost too, except log lines of [`setup_logging`].
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    verbosities = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # The GGUF reader draws its own tqdm bar, which ignores the settings above.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosities[0])
        hub_logging.set_verbosity(verbosities[1])
        if bars:
            transformers_logging.enable_progress_bar()


def is_first_process() -> bool:
    """Returns whether this is the first of the processes that a launcher started, which prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def setup_logging() -> None:
    """Prints the log messages of this package from INFO up as plain lines on stderr. A second call changes nothing.

    bitsandbytes prints only errors: where peft imports it, it warns of a missing kernel that nothing here uses.
    """
    handler = logging.StreamHandler()  # keeps the current stderr, which quiet_transformers does not reach
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger(__name__.partition(".")[0])
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class _LineFormatter(logging.Formatter):
    """Writes each message in one line, even if it contains the name of a file with a line end."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def first_line_of(error: Exception) -> str:
    """Returns the first line of an exception's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def describe_file_error(error: Exception) -> str:
    """Returns an error of reading or writing in one line: the file if it is known, and the reason."""
    where = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{where}: {reason}" if where else reason
