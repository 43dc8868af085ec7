"""The largest picture that is read by default, by its pixels and by the size of its file."""

# A little above an uncompressed picture of the most pixels, 3 bytes each.
MAX_BYTES = 400_000_000
MAX_PIXELS = 128_000_000
