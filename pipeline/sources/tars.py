"""Reading other people's tars: headers only, bounded, and nothing is believed.

Scans a tar's headers with a parser of its own and says where each member's data lies; nothing is ever extracted.
Old-style (v7), ustar, GNU long names and PAX headers are understood. Everything that could harm or mislead a later
reader (links, devices, sparse files, absolute names, `..`, names that are not UTF-8) is reported as a member with a
`problem`, so that it becomes a failure row.

Several archives one after another in one file are read as one. An archive that ends without its two zero blocks is
reported as cut, also when the cut falls exactly between two members, which other readers accept in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from .kinds import TAR, named_format

BLOCK: Final = 512
MAX_HEADER_BYTES: Final = 2**20
"""Longest GNU name or PAX header that is read; real ones have some hundred bytes."""
MAX_NAME_BYTES: Final = 4096

_REGULAR: Final = (b"0", b"\0", b"7")
_SKIPPED: Final = (b"5", b"g", b"V")
"""Directories, global PAX headers and volume labels hold no sample."""


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """One member as its header tells.

    Attributes:
        name: without a leading `./`; printable UTF-8 (bytes that are not are shown as `\\xNN`).
        offset: of its data in the file.
        size: bytes of its data.
        problem: why it cannot be used, or None: a bad name or a kind that is no regular file.
        whole: False if the file ends before its data does.
    """

    name: str
    offset: int
    size: int
    problem: str | None
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class TarEnd:
    """How the archive ends.

    Attributes:
        problem: None for a proper end, else what is wrong: cut, damaged, or no tar at all.
    """

    problem: str | None


def scan_tar(stream: BinaryIO, size: int) -> Iterator[TarMember | TarEnd]:
    """Yields the members in order, then one `TarEnd`.

    Args:
        stream: seekable, at any position.
        size: of the file in bytes.
    """
    position = 0
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    zero_blocks = 0
    while True:
        header = _read(stream, position, BLOCK)
        if position == 0 and (found := named_format(header)) is not None and found[1] != TAR:
            advice = ": decompress it first" if found[0] == "archive" else ""
            yield TarEnd(problem=f"{_with_article(found[1])}, expected a plain tar{advice}")
            return
        if len(header) < BLOCK:
            if zero_blocks >= 2 and not header.strip(b"\0"):
                yield TarEnd(problem=None)
            elif size == 0:
                yield TarEnd(problem="zero bytes, expected a tar")
            elif header.strip(b"\0"):
                yield TarEnd(problem=f"cut inside a header at byte {position}")
            else:
                yield TarEnd(problem=f"no end-of-archive blocks: cut at byte {size}")
            return
        if not header.strip(b"\0"):
            zero_blocks += 1
            position += BLOCK
            continue
        if not _checksum_holds(header):
            yield TarEnd(problem=f"damaged header at byte {position}, the rest cannot be read")
            return
        zero_blocks = 0
        kind = header[156:157]
        length = _number(header[124:136])
        data = position + BLOCK
        if length is None or length < 0:
            yield TarEnd(problem=f"damaged size in the header at byte {position}, the rest cannot be read")
            return
        if kind in (b"L", b"K", b"x"):
            if length > MAX_HEADER_BYTES:
                yield TarEnd(problem=f"a name or PAX header of {length} bytes at byte {position}")
                return
            content = _read(stream, data, length)
            if len(content) < length:
                yield TarEnd(problem=f"cut inside a header at byte {position}")
                return
            if kind == b"L":
                long_name = content.split(b"\0", 1)[0]
            elif kind == b"x":
                pax = _pax_records(content)
            position = data + _padded(length)
            continue
        if b"size" in pax:
            stated = pax[b"size"]
            if not stated.isdigit() or len(stated) > 19:
                yield TarEnd(problem=f"damaged PAX size at byte {position}, the rest cannot be read")
                return
            length = int(stated)
        raw = pax.get(b"path") or long_name or _header_name(header)
        sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in pax)
        long_name, pax = None, {}
        if kind not in _SKIPPED:
            problem = _kind_problem(kind, sparse) or name_problem(raw)
            whole = data + length <= size
            yield TarMember(name=printable(raw), offset=data, size=length, problem=problem, whole=whole)
            if not whole:
                yield TarEnd(
                    problem=f"cut inside the member at byte {position}: {size - data} of {length} bytes are there"
                )
                return
        has_data = kind in _REGULAR or kind not in (b"1", b"2", b"3", b"4", b"5", b"6")
        position = data + (_padded(length) if has_data else 0)


def name_problem(raw: bytes) -> str | None:
    """Why a member's or file's name cannot be used, or None."""
    if len(raw) > MAX_NAME_BYTES:
        return f"a name of {len(raw)} bytes"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "the name is not UTF-8"
    if not name.strip("./"):
        return "the name is empty"
    if name.startswith("/") or (name[1:3] in (":/", ":\\") and name[0].isalpha()):
        return "the name is absolute"
    if ".." in name.replace("\\", "/").split("/"):
        return "the name leads out of its folder (..)"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "the name holds control characters"
    return None


def printable(raw: bytes) -> str:
    """The name as text that is always valid UTF-8, without control characters and without a leading `./`."""
    text = raw.decode("utf-8", "backslashreplace")
    text = "".join(c if ord(c) >= 32 and ord(c) != 127 else f"\\x{ord(c):02x}" for c in text)
    while text.startswith("./"):
        text = text[2:]
    return text


def _kind_problem(kind: bytes, sparse: bool) -> str | None:
    if sparse:
        return "a sparse file, expected a regular one"
    if kind in _REGULAR:
        return None
    kinds = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
    return f"{kinds.get(kind, f'a member of type {kind!r}')}, expected a regular file"


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _with_article(kind: str) -> str:
    return kind if kind.startswith(("a ", "an ")) else f"a {kind} file"


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _checksum_holds(header: bytes) -> bool:
    stated = _number(header[148:156])
    return stated is not None and stated == sum(header[:148]) + 8 * 32 + sum(header[156:])


def _number(field: bytes) -> int | None:
    if field[:1] in (b"\x80", b"\xff"):  # GNU's base 256
        return int.from_bytes(field[1:], "big") if field[:1] == b"\x80" else -1
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        return None
    return int(digits, 8)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or len(length) > 7 or not len(length) + 1 < int(length) <= len(content):
            break
        key, separator, value = rest[: int(length) - len(length) - 1].rstrip(b"\n").partition(b"=")
        if separator:
            records[key] = value
        content = content[int(length) :]
    return records
