"""The largest picture that is read by default, by its pixels and by the size of its file; and that is resized."""

# A little above an uncompressed picture of the most pixels, 3 bytes each.
MAX_BYTES = 400_000_000
MAX_PIXELS = 128_000_000


def check_resized(width: int, height: int, shorter_side: int) -> None:
    """Checks how large a picture becomes when its shorter side is resized, before its middle is cut out.

    A line of 5,000 x 1 pixels becomes a million pixels long.

    Args:
        width: The picture's width in pixels.
        height: The picture's height in pixels.
        shorter_side: The length of its shorter side after resizing.

    Raises:
        MemoryError: It gets more than `MAX_PIXELS` pixels.
    """
    shorter, longer = sorted((width, height))
    if shorter_side**2 * longer > MAX_PIXELS * shorter:
        raise MemoryError(f"a picture of {width} x {height} pixels is too thin to be resized")
