"""Captions the example photos with the default checkpoint and writes a page of them."""

from pathlib import Path

from ..core.console import ArgumentParser, loading, printable, quiet_transformers, setup_logging
from ..core.errors import ConfigError
from ..core.outputs import PAGE, Output, check_outputs
from ..core.shipped import shipped

TITLE = "Photos and their captions"
NOTE = (
    "The vision tower is DINOv2 ViT-S/14 and the language model is SmolLM2-135M-Instruct, not CLIP and GPT-2. Both "
    "are frozen; only the projection between them was trained. The captions are shown as they came, right or wrong."
)


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 2 if the checkpoint cannot be used or the page cannot be written; 130 after Ctrl-C.
    """
    parser = ArgumentParser(prog=prog, description="Captions the photos in examples/.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("demo.html"), help="the page to write (demo.html)")
    arguments = parser.parse_args(argv)
    setup_logging()
    try:
        check_outputs([Output("--output", arguments.output, PAGE)])
    except ConfigError as error:
        parser.complain(error)
        return 2
    with loading("PyTorch and transformers"):
        from ..captioning.captioner import Captioner
        from ..pages.gallery import write_gallery
    photos = sorted(shipped("examples").glob("*.jpg"))
    try:
        with loading("the checkpoint"), quiet_transformers():
            captioner = Captioner.from_pretrained()
        with quiet_transformers():
            captions = captioner.caption(photos)
        for caption in captions:
            print(printable(f"{Path(caption.image).name}: {caption.text}"))
        write_gallery(arguments.output, [(caption.image, caption.text) for caption in captions], TITLE, NOTE)
    except (OSError, RuntimeError, ValueError) as error:
        parser.complain(error)
        return 2
    print(f"Page: {arguments.output}")
    return 0
