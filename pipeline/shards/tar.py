"""A small tar writer: plain ustar, equal bytes for equal input, hashed as it is written.

Headers carry constant times, owners and modes, so two runs give the same file. `webdataset.TarWriter` sorts the members
of a sample and stamps the time of writing, `tarfile` re-reads what it wrote: this one appends and keeps the offsets.
"""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO, Final

from ..errors import SchemaError

BLOCK: Final = 512
RECORD: Final = 10_240
"""Files are padded to whole records, as GNU tar does."""
MAX_MEMBER_BYTES: Final = 8 * 2**30 - 1
"""What eleven octal digits can say."""


class TarWriter:
    """Appends members to a binary file.

    Args:
        stream: opened for writing, at its beginning; flushed and synced by its owner.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    def add(self, name: str, data: bytes) -> int:
        """Appends a regular file and returns the offset of its data in the tar.

        Raises:
            SchemaError: a name over 100 bytes or not ASCII, or more than 8 GiB of data.
        """
        header = ustar_header(name, len(data))
        offset = self.size + BLOCK
        padding = -len(data) % BLOCK
        for piece in (header, data, bytes(padding)):
            self._write(piece)
        return offset

    def finish(self) -> str:
        """Writes the end of the archive and returns the sha256 of the whole file, in hex."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % RECORD))
        self._stream.flush()
        return self._hash.hexdigest()

    def _write(self, piece: bytes) -> None:
        if piece:
            self._stream.write(piece)
            self._hash.update(piece)
            self.size += len(piece)


def ustar_header(name: str, size: int) -> bytes:
    """The 512-byte header of a regular file: mode 0644, owner and group 0 without names, mtime 0."""
    encoded = name.encode("ascii", "strict") if name.isascii() else b""
    if not 0 < len(encoded) <= 100:
        raise SchemaError(f"tar member {name!r}: expected 1 to 100 ASCII characters")
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise SchemaError(f"tar member {name!r}: {size} bytes are more than ustar can say ({MAX_MEMBER_BYTES})")
    header = io.BytesIO()
    header.write(encoded.ljust(100, b"\0"))
    header.write(b"0000644\0" + b"0000000\0" + b"0000000\0")
    header.write(b"%011o\0" % size + b"%011o\0" % 0)
    header.write(b" " * 8 + b"0" + bytes(100))
    header.write(b"ustar\0" + b"00" + bytes(32) + bytes(32))
    block = header.getvalue().ljust(BLOCK, b"\0")
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]
