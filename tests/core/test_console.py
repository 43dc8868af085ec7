import argparse
import logging
import sys

import pytest
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from vlm_caption.core import console
from vlm_caption.core.console import (
    ArgumentParser,
    positive_int,
    printable,
    progress,
    quiet_transformers,
    setup_logging,
)


class Clock:
    """A clock that a test moves on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


@pytest.fixture
def package_logger():
    logger = logging.getLogger("vlm_caption")
    handlers, level = logger.handlers, logger.level
    yield logger
    logger.handlers, logger.level = handlers, level


def test_progress_in_a_log_is_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    items = []
    for item in progress(range(50), desc="pictures"):
        items.append(item)
        clock.now += 0.5
    assert items == list(range(50))
    assert capsys.readouterr().err.splitlines() == [
        "pictures: 20/50, 2/s, 00:15 left",
        "pictures: 40/50, 2/s, 00:05 left",
        "pictures: 50/50, 2/s",
    ]


def test_progress_without_a_length_counts(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    for _ in progress(iter("abc")):
        clock.now += 4
    assert capsys.readouterr().err == "3, 0.25/s\n"  # the tenth second and the end are one line


def test_progress_takes_a_total_for_what_has_no_length(capsys):
    assert list(progress(iter("abc"), total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("3/3, ")


def test_progress_of_nothing_says_so_once(capsys):
    assert list(progress([], desc="nothing")) == []
    assert capsys.readouterr().err.splitlines() == ["nothing: 0/0, 0/s"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress("abc", desc="letters")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\rletters: 100%|" in captured.err


def test_quiet_transformers_silences_and_restores(capsys):
    loggers = [transformers_logging.get_logger("transformers.test"), hub_logging.get_logger("huggingface_hub.test")]
    verbosities = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_warning()
        transformers_logging.enable_progress_bar()
        with quiet_transformers():
            for logger in loggers:
                logger.warning("from a log")
            print("from a progress bar", file=sys.stderr)
            assert not transformers_logging.is_progress_bar_enabled()
        assert capsys.readouterr() == ("", "")
        assert transformers_logging.get_verbosity() == logging.WARNING
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(verbosities[0])
        if not bars:
            transformers_logging.disable_progress_bar()
    assert hub_logging.get_verbosity() == verbosities[1]


def test_quiet_transformers_lets_errors_through_and_restores():
    before, stderr = transformers_logging.get_verbosity(), sys.stderr
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert (transformers_logging.get_verbosity(), sys.stderr) == (before, stderr)


def test_log_messages_are_plain_lines_printed_once(capsys, package_logger):
    setup_logging()
    setup_logging()
    logger = logging.getLogger("vlm_caption.towers.sources")
    logger.info("Fetching %s", "a tower")
    logger.debug("detail")
    with quiet_transformers():
        logger.info("Fetching another")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["Fetching a tower", "Fetching another"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "two", "1_0", "²"])
def test_positive_int_refuses_all_else(text):
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        positive_int(text)


def test_bad_usage_is_one_line_and_exit_code_2(capsys):
    parser = ArgumentParser(prog="tool.py")
    parser.add_argument("--beams", type=positive_int)
    assert parser.parse_args(["--beams", "3"]).beams == 3
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--beams", "0"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "tool.py: argument --beams: give a whole number of at least 1, not '0'\n"


def test_printed_text_holds_nothing_that_a_terminal_obeys():
    assert printable("a\x1b[31m b\nc\u2028d\u202ee\udcff") == "a\\x1b[31m b\\nc\\u2028d\\u202ee\\udcff"
    assert printable("Zwei Kühe 👨‍👩‍👧 \\n") == "Zwei Kühe 👨‍👩‍👧 \\n"
