"""What the site consists of: the pages of the repository, the files they link to, and a page for each room."""

import ast
import re
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "checkpoints/embedded/README.md"]
# [`Captioner`] in a docstring, as in those of transformers.
MENTION = re.compile(r"\[<code>(\w+)((?:\.\w+)*)</code>\]")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")


def public_names(stub: Path) -> dict[str, str]:
    """The names in a face, and the module that each comes from."""
    package = stub.parent.relative_to(REPOSITORY).parts
    return {
        alias.name: ".".join([*package, statement.module or ""])
        for statement in ast.parse(stub.read_text()).body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


@cache
def reference_pages() -> dict[str, str]:
    """Place and text of a page for the package and for each of its rooms, which are the folders with a face.

    A name that stands in two faces is described on the first page and linked to from the other.
    """
    package = REPOSITORY / "vlm_caption"
    pages = {}
    described = {}
    for stub in [package / "__init__.pyi", *sorted(package.glob("*/__init__.pyi"))]:
        face = ".".join(stub.parent.relative_to(REPOSITORY).parts)
        introduction = ast.get_docstring(ast.parse(stub.with_suffix(".py").read_text()))
        parts = [f"# {face}", introduction]
        for name, module in sorted(public_names(stub).items()):
            place = described.setdefault((module, name), f"{face}.{name}")
            if place == f"{face}.{name}":
                parts.append(f"::: {place}")
            else:
                parts.append(f"## {name}\n\nSee [`{place}`][{place}].")
        pages[f"reference/{face}.md"] = "\n\n".join(parts) + "\n"
    return pages


def identifiers() -> dict[str, str]:
    """Where each public name is described: its identifier in the reference, which autorefs finds the page of."""
    listed = re.findall(r"^::: (\S+)$", "\n".join(reversed(reference_pages().values())), re.MULTILINE)
    return {identifier.rpartition(".")[2]: identifier for identifier in listed}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the rooms in the navigation."""
    reference = next(entry for entry in config.nav if "Reference" in entry)
    reference["Reference"] = [{Path(page).stem: page} for page in reference_pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives every file the place that it has in the repository."""
    places = set(PAGES)
    for file in list(files):
        if (REPOSITORY / "docs" / file.src_uri).is_file():  # not those of the theme
            places.add(f"docs/{file.src_uri}")
            files.remove(file)
    for page in [place for place in places if place.endswith(".md")]:
        for link in LINK.findall((REPOSITORY / page).read_text()):
            target = (REPOSITORY / page).parent.joinpath(link).resolve()
            if target.is_file():  # if not, MkDocs says so
                places.add(target.relative_to(REPOSITORY).as_posix())
    for place in sorted(places):
        files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / place)))
    for place, text in reference_pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Makes links of the names in brackets."""

    def refer(mention: re.Match) -> str:
        code = f"<code>{mention[1]}{mention[2]}</code>"
        identifier = identifiers().get(mention[1])
        return f'<autoref identifier="{identifier}{mention[2]}">{code}</autoref>' if identifier else code

    return MENTION.sub(refer, html)
