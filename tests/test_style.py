"""The size of functions: at most 60 lines and 8 parameters, apart from those that are listed here with the reason."""

import ast
from collections.abc import Iterator

from commands import REPOSITORY

MAX_LINES = 60  # from `def` to the end, with the docstring
MAX_PARAMETERS = 8  # without self, cls, *args and **kwargs

# By file and name.
ALLOWED = {
    "vlm_caption/towers/captioner.py: CaptionerForConditionalGeneration.forward": "the signature is transformers'",
}


def too_large(source: str) -> Iterator[str]:
    """Yields the qualified names of the functions above the limits."""

    def visit(node: ast.AST, scope: str, in_class: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            name = f"{scope}{getattr(child, 'name', '')}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                if lines_of(child) > MAX_LINES or parameters_of(child, in_class) > MAX_PARAMETERS:
                    yield name
                yield from visit(child, f"{name}.", in_class=False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{name}.", in_class=True)
            else:
                yield from visit(child, scope, in_class)

    return visit(ast.parse(source), "", in_class=False)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> int:
    arguments = function.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    has_receiver = is_method and positional[:1] in (["self"], ["cls"])
    return len(positional) + len(arguments.kwonlyargs) - has_receiver


def test_no_function_is_too_large_but_those_that_are_listed():
    found = set()
    for folder in ("vlm_caption", "scripts", "benchmarks", "examples"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            place = file.relative_to(REPOSITORY).as_posix()
            found |= {f"{place}: {name}" for name in too_large(file.read_text(encoding="utf-8"))}
    new, gone = sorted(found - ALLOWED.keys()), sorted(ALLOWED.keys() - found)
    assert not new, f"more than {MAX_LINES} lines or {MAX_PARAMETERS} parameters, split them: {', '.join(new)}"
    assert not gone, f"these are within the limits now, remove them from the list: {', '.join(gone)}"


def test_lines_and_parameters_are_counted():
    body = "    pass\n" * (MAX_LINES - 1)
    names = ", ".join(f"p{number}" for number in range(MAX_PARAMETERS))
    assert not [*too_large(f"@cache\ndef f():\n{body}")]
    assert [*too_large(f"def f():\n{body}    pass\n")] == ["f"]
    assert not [*too_large(f"class C:\n    def f(self, {names}, *args, **kwargs): ...")]
    assert [*too_large(f"class C:\n    def f(self, {names}, *, one_more): ...")] == ["C.f"]
    assert [*too_large(f"def f():\n    def g({names}, one_more): ...")] == ["f.g"]
