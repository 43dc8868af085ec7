"""Captions the photos in `examples/` and writes a page of them: `python scripts/demo.py`."""

import sys
from pathlib import Path

from vlm_caption.captioning.captioner import Captioner
from vlm_caption.core.console import ArgumentParser, printable, quiet_transformers, setup_logging
from vlm_caption.core.outputs import PAGE, Output, check_outputs
from vlm_caption.pages.gallery import write_gallery

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

TITLE = "Photos and their captions"
NOTE = (
    "The vision tower is DINOv2 ViT-S/14 and the language model is SmolLM2-135M-Instruct, not CLIP and GPT-2. Both "
    "are frozen; only the projection between them was trained. The captions are shown as they came, right or wrong."
)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 if the checkpoint cannot be used or the page cannot be written."""
    parser = ArgumentParser(prog="demo.py", description="Captions the photos in examples/.", allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("demo.html"), help="the page to write (demo.html)")
    arguments = parser.parse_args(argv)
    setup_logging()
    photos = sorted(EXAMPLES.glob("*.jpg"))
    try:
        check_outputs([Output("--output", arguments.output, PAGE)])
        with quiet_transformers():
            captions = Captioner.from_pretrained().caption(photos)
        for caption in captions:
            print(printable(f"{Path(caption.image).name}: {caption.text}"))
        write_gallery(arguments.output, [(caption.image, caption.text) for caption in captions], TITLE, NOTE)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    print(f"Page: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
