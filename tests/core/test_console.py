import argparse
import logging
import sys
import time

import pytest
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from vlm_caption.core import console
from vlm_caption.core.console import (
    ArgumentParser,
    loading,
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a dog.jpg\ncaption.py: all is well", "a dog.jpg\\ncaption.py: all is well"),
        ("\x1b[2Jcleared\x07\r", "\\x1b[2Jcleared\\x07\\r"),
        ("\x9b31mred\x85next", "\\x9b31mred\\x85next"),
        ("line\u2028separator", "line\\u2028separator"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("no text: \udcff", "no text: \\udcff"),
    ],
)
def test_a_name_cannot_forge_a_line_nor_control_the_terminal(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    ["a photo.jpg", "ein Fuß", "犬\u3000猫.jpg", "👩\u200d🚒", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", ""],
)
def test_names_in_all_scripts_are_shown_as_they_are(text):
    assert printable(text) == text


def test_a_log_line_and_an_error_stay_one_line_each(capsys, package_logger):
    setup_logging()
    logging.getLogger("vlm_caption.data").info("left out %s", "a\nb")
    ArgumentParser(prog="tool.py").complain(ValueError("c\nd: there is no such file"))
    assert capsys.readouterr().err == "left out a\\nb\ntool.py: c\\nd: there is no such file\n"


def test_a_long_load_is_announced_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console, "_SECONDS_OF_SILENCE", 0.01)
    with loading("a tower"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with loading("a tower"):
        time.sleep(0.1)
    assert capsys.readouterr().err == "Loading a tower …\n"


def test_a_short_load_is_not_announced(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with loading("a tower"):
        pass
    time.sleep(0.6)
    assert capsys.readouterr().err == ""
