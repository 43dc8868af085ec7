"""The environment: made from constraints.txt alone, which names a version for each package and nothing else."""

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = [ROOT / "constraints.txt", ROOT / "constraints-oldest.txt"]
# Not installed from an index: the package itself, and pip, which comes with every environment that `venv` makes.
NOT_CONSTRAINED = {"vlm-caption", "pip"}

NAME, VERSION = r"[a-z0-9]+(-[a-z0-9]+)*", r"[0-9]+(\.[0-9]+)*(\.post[0-9]+)?"
MARKER = r"( ; [a-z_ ()<>=!'0-9.A-Z]+)?"


def pinned(file: Path) -> dict[str, str]:
    """The versions that a file gives for this Python and platform."""
    requirements = [Requirement(line) for line in file.read_text().splitlines()]
    return {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, with all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != project["name"]]


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.name)
class TestConstraints:
    def test_have_names_versions_and_markers_alone(self, file):
        for line in file.read_text().splitlines():
            assert re.fullmatch(f"{NAME}=={VERSION}{MARKER}", line), line

    def test_have_one_version_of_everything_that_pyproject_asks_for(self, file):
        versions = pinned(file)
        for requirement in direct():
            name = canonicalize_name(requirement.name)
            assert name in versions, f"{name} is not in {file.name}: make constraints"
            assert requirement.specifier.contains(versions[name]), f"{requirement} is newer: make constraints"


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pinned(ROOT / "constraints-oldest.txt")
    for requirement in direct():
        [bound] = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        version = oldest[canonicalize_name(requirement.name)]
        assert Requirement(f"a=={bound}").specifier.contains(version), f"{requirement} is {version}: make constraints"


def test_the_environment_has_the_versions_of_its_constraints_and_no_other_package():
    made_from = Path(sys.prefix, "installed")
    known = {file.read_text(): file for file in CONSTRAINTS}
    if not made_from.is_file() or made_from.read_text() not in known:
        pytest.skip("this environment was not made from the constraints that are here: make test")
    versions = pinned(known[made_from.read_text()])
    installed = {canonicalize_name(found.name): found.version for found in distributions(path=site_packages())}
    others = {f"{name} {version}" for name, version in installed.items() if versions.get(name) != version}
    assert {name.split()[0] for name in others} <= NOT_CONSTRAINED, f"not as in the constraints: {sorted(others)}"


def site_packages() -> list[str]:
    """The environment's own folders, without what PYTHONPATH and the working directory add."""
    return [folder for folder in sys.path if Path(folder).is_relative_to(sys.prefix)]
