"""Prints, in Markdown, how transformers' own tests go on captioners, and beside them on stock LLaVA.

python tests/upstream/report.py
"""

import contextlib
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import transformers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Outcomes:
    """A pytest plugin: the outcome of each test, with the reason where it was skipped."""

    def __init__(self):
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)  # class → test → passed, failed, skipped
        self.reasons: dict[tuple[str, str], str] = {}  # (class, test) → why it was skipped
        self.subtests: dict[str, int] = defaultdict(int)  # class → those that passed

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        name, test = report.nodeid.split("::")[-2:]
        if hasattr(report, "context") and report.passed:
            self.subtests[name] += 1
        if report.skipped:
            self.reasons[name, test] = _plain(report.longrepr[2])
        # Of a test and its subtests, the worst counts.
        worst = max(self.outcomes[name].get(test, ""), report.outcome, key=["", "passed", "skipped", "failed"].index)
        self.outcomes[name][test] = worst


def _plain(reason: str) -> str:
    """A reason for a skip, without the names of the classes that were tested."""
    reason = re.sub(r"<class '[^']*\.(\w+)'>", r"\1", reason.removeprefix("Skipped: ").rstrip("."))
    reason = re.sub(r"\b(Captioner|Llava)(Processor|Config)\b", lambda match: f"the {match[2].lower()}", reason)
    return re.sub(r"\b(Captioner|Llava)(Model|ForConditionalGeneration)\b", "the model", reason).replace("|", "\\|")


def _run(*files: str) -> Outcomes:
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*options, "-c", str(ROOT / "pyproject.toml"), *(str(HERE / file) for file in files)], [outcomes])
    return outcomes


def _table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main() -> int:
    ours, llava = _run("test_upstream_captioner.py"), _run("llava.py")
    if not ours.outcomes:
        print("The tests did not run: the reason stands above.", file=sys.stderr)
        return 1

    print(f"With transformers {transformers.__version__}:\n")
    rows = []
    for run in (ours, llava):
        for name, tests in run.outcomes.items():
            counts = [list(tests.values()).count(outcome) for outcome in ("passed", "failed", "skipped")]
            rows.append([_title(name), *counts, run.subtests[name]])
    print(_table(["", "passed", "failed", "skipped", "subtests passed"], rows))

    for name, tests in {**ours.outcomes, **llava.outcomes}.items():
        for test in sorted(test for test, outcome in tests.items() if outcome == "failed"):
            print(f"\nFailed: {_title(name)}, `{test}`")

    # One row for a reason, the classes that skip for it, and how LLaVA does.
    models = [name for name in ours.outcomes if name != "TestProcessor"]
    classes = defaultdict(set)  # (reason, test) → those that skip it
    for (name, test), reason in ours.reasons.items():
        classes[reason, test].add(name)
    rows = defaultdict(set)
    for (reason, test), names in classes.items():
        where = "processor" if names == {"TestProcessor"} else "all pairs"
        if where == "all pairs" and len(names) < len(models):
            where = ", ".join(_title(name) for name in models if name in names)
        twin = "LlavaProcessorTest" if where == "processor" else "LlavaModelTest"
        rows[reason, where, llava.outcomes[twin][test]].add(_family(test))
    skips = [[reason, where, _code(tests), outcome] for (reason, where, outcome), tests in sorted(rows.items())]
    print("\n" + _table(["skipped, for", "by", "tests", "LLaVA"], skips))

    passed_by_all = {
        test for test in ours.outcomes[models[0]] if all(ours.outcomes[m][test] == "passed" for m in models)
    }
    only_llava = {_family(test) for test in passed_by_all if llava.outcomes["LlavaModelTest"][test] == "skipped"}
    print(f"\nSkipped by LLaVA and passed by all pairs: {_code(only_llava) or 'none'}.")
    return 0


def _title(name: str) -> str:
    """ "TestClipGpt2" → "clip+gpt2"."""
    if name.startswith("Llava"):
        return "LLaVA, processor" if "Processor" in name else "LLaVA (clip+llama)"
    return "+".join(re.findall(r"[A-Z][a-z]*\d?", name.removeprefix("Test"))).lower()


def _family(test: str) -> str:
    """The name of a parametrised test, without the parameters."""
    return re.sub(r"(?<!flash_attn)_\d+(_\w+)?$", "", test)


def _code(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    sys.exit(main())
