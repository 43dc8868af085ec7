"""A picture inside an archive or a table."""

from collections.abc import Callable
from typing import Any

from ..core.console import first_line_of


class StoredPicture:
    """A picture inside an archive or a table, which `open_image` reads when it opens it.

    It can be pickled: another process opens the archive again.

    Args:
        name: The picture's name in captions and messages, such as "photos.zip, 1.jpg".
        open_file: A function that opens the picture as a binary file, and can be pickled.
    """

    def __init__(self, name: str, open_file: Callable[[], Any]) -> None:
        self.name = name
        self._open_file = open_file

    def read(self, size: int) -> bytes:
        """Returns the picture's first bytes, at most `size`, and keeps none of them.

        Raises:
            OSError: The archive is damaged, or holds the picture in a form that cannot be read.
        """
        try:
            with self._open_file() as file:
                return file.read(size)
        except OSError:
            raise
        except Exception as error:  # zipfile, tarfile, zlib and pyarrow have errors of their own
            raise OSError(first_line_of(error)) from error
