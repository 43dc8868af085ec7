"""Pictures in a zip archive, read where they lie."""

import struct
import zipfile
from pathlib import Path

from ..core.errors import DataError
from ..core.files import open_regular
from .places import Place

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., length of the name, length of the extra field


class ZipPictures:
    """The pictures in a zip archive, whose list of names is held in memory.

    Args:
        path: The archive.

    Raises:
        DataError: It is damaged, or no zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise DataError(f"{path}: the zip archive is damaged or none ({error})") from error
        self._members = {member.filename: member for member in members}
        tops = {name.partition("/")[0] for name in self._members}
        self._top = f"{tops.pop()}/" if len(tops) == 1 else ""

    def has(self, name: str) -> bool:
        """Returns whether a picture of this name is in the archive, or in the only folder in it."""
        return name in self._members or self._top + name in self._members

    def place(self, name: str) -> Place | str:
        """Returns where a picture lies, or what is wrong with it in words."""
        member = self._members.get(name) or self._members.get(self._top + name)
        if member is None:
            return f"the picture {name} is not in {self.path}"
        if member.flag_bits & 1:
            return f"the picture {name} is encrypted in {self.path}: unpack the archive"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"the picture {name} is compressed in a way that is not read: unpack {self.path}"
        try:
            with open_regular(self.path) as file:
                file.seek(member.header_offset)
                signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        except (OSError, struct.error, ValueError) as error:
            return f"the zip archive {self.path} is damaged ({error})"
        if signature != b"PK\x03\x04":
            return f"the zip archive {self.path} is damaged at {name}"
        offset = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
        return Place(str(self.path), member.filename, offset, member.compress_size, is_deflated=is_deflated)
