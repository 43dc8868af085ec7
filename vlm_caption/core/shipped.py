"""Files that come with the package: the default checkpoint, its configs, the example photos and the licence."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Returns the path of a file or folder that comes with the package.

    Args:
        name: Its path in the repository, such as "examples". An installed wheel has a copy inside the package.
    """
    inside = _PACKAGE / "shipped" / name
    return inside if inside.exists() else _PACKAGE.parent / name
