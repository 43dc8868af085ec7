"""Exports a checkpoint for captioning without torch."""

from pathlib import Path

from ..captioning.checkpoints import DEFAULT_CHECKPOINT, find_checkpoint
from ..core.console import ArgumentParser, loading, setup_logging
from ..core.hub_ids import is_hub_id


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 2 if the checkpoint cannot be exported; 130 after Ctrl-C.
    """
    parser = ArgumentParser(
        prog=prog, description="Exports a checkpoint for captioning without torch.", allow_abbrev=False
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write, which must not exist yet")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id (checkpoints/embedded)")
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="the format of the graphs (onnx)")
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round weights to 8 bits: a quarter of the size, faster; int4 keeps most of them in 4 bits on the disk",
    )
    arguments = parser.parse_args(argv)
    setup_logging()
    try:
        if not is_hub_id(str(arguments.checkpoint)):
            find_checkpoint(arguments.checkpoint)  # before the slow imports
        with loading("PyTorch and transformers"):
            from ..export.folder import export_onnx
        folder = export_onnx(arguments.checkpoint, arguments.output, arguments.quantize)
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        parser.complain(error)
        return 2
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"Exported: {folder}, {size:.0f} MB")
    return 0
