"""What a file is: by its name where that is enough, else by its first bytes.

Images (`.jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp`), tars and tables are taken by their names; what is inside
decides later. Files that are called as text, tables, sound or film, and raw files of cameras (TIFFs that hold a
thumbnail), are never opened. Whatever else there is, a name without an ending for instance, is asked for its first
bytes: one small read a file, on an object store one small request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .passed_over import PassedReason

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp")
SNIFF_BYTES: Final = 512
"""Enough for the mark of a tar, at byte 257."""

TAR: Final = "a tar that is not called .tar"

Use = Literal["image", "tar", "parquet"]

_RAW: Final = frozenset(
    {
        ".3fr",
        ".arw",
        ".cr2",
        ".cr3",
        ".dng",
        ".iiq",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".raf",
        ".raw",
        ".rw2",
        ".srw",
        ".x3f",
    }
)
_NEVER_OPENED: Final = frozenset(
    {
        ".aac",
        ".avi",
        ".bib",
        ".c",
        ".cfg",
        ".cls",
        ".conf",
        ".cpp",
        ".css",
        ".csv",
        ".doc",
        ".docx",
        ".flac",
        ".geojson",
        ".h",
        ".htm",
        ".html",
        ".ini",
        ".ipynb",
        ".js",
        ".json",
        ".jsonl",
        ".log",
        ".m4a",
        ".m4v",
        ".mat",
        ".md",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".npy",
        ".npz",
        ".odt",
        ".ogg",
        ".pdf",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".py",
        ".pyc",
        ".rst",
        ".rtf",
        ".safetensors",
        ".sh",
        ".sqlite",
        ".toml",
        ".tsv",
        ".txt",
        ".wav",
        ".webm",
        ".wmv",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
    }
)
_MARKS: Final[tuple[tuple[int, bytes, PassedReason, str], ...]] = (
    (0, b"GIF8", "unsupported_image", "GIF"),
    (4, b"ftypavi", "unsupported_image", "AVIF"),
    (4, b"ftyphei", "unsupported_image", "HEIC"),
    (4, b"ftyphev", "unsupported_image", "HEIC"),
    (4, b"ftypmif1", "unsupported_image", "HEIC"),
    (4, b"ftypmsf1", "unsupported_image", "HEIC"),
    (4, b"jP  \r\n\x87\n", "unsupported_image", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "unsupported_image", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "unsupported_image", "JPEG XL"),
    (0, b"\xff\x0a", "unsupported_image", "JPEG XL"),
    (0, b"8BPS", "unsupported_image", "PSD"),
    (0, b"\x76\x2f\x31\x01", "unsupported_image", "OpenEXR"),
    (0, b"#?RADIANCE", "unsupported_image", "Radiance"),
    (0, b"P5\n", "unsupported_image", "PNM"),
    (0, b"P6\n", "unsupported_image", "PNM"),
    (0, b"<svg", "unsupported_image", "SVG"),
    (0, b"\x1f\x8b", "archive", "gzip"),
    (0, b"PK\x03\x04", "archive", "zip"),
    (0, b"BZh", "archive", "bzip2"),
    (0, b"\xfd7zXZ\0", "archive", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "archive", "zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "archive", "7z"),
    (0, b"Rar!\x1a\x07", "archive", "rar"),
    (257, b"ustar", "archive", TAR),
    (0, b"PAR1", "archive", "a parquet file that is not called .parquet"),
)


@dataclass(frozen=True)
class Kind:
    """How a file is used, or why it is not.

    Attributes:
        use: as what; None if it is passed over.
        reason: why not.
        name: of the kind, for people: a format, else the name's ending.
    """

    use: Use | None = None
    reason: PassedReason = "other"
    name: str = ""


_IMAGE: Final = Kind("image")


def stem_of(path: str) -> str:
    """The path without the ending of the file's name."""
    suffix = suffix_of(path)
    return path[: -len(suffix)] if suffix else path


def suffix_of(path: str) -> str:
    """The ending of a file's name with its dot, lower case; "" for a name without one."""
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2]}".lower() if "." in name[1:] else ""


def kind_of_name(path: str) -> Kind | None:
    """What a name alone tells; None if the first bytes must be asked."""
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES:
        return _IMAGE
    if suffix == ".tar":
        return Kind("tar")
    if suffix == ".parquet":
        return Kind("parquet")
    if suffix in _RAW:
        return Kind(reason="unsupported_image", name=f"camera raw {suffix}")
    return Kind(name=suffix) if suffix in _NEVER_OPENED else None


def kind_of_bytes(first: bytes, path: str) -> Kind:
    """What the first `SNIFF_BYTES` of a file tell."""
    if is_image(first):
        return _IMAGE
    if (named := named_format(first)) is not None:
        return Kind(reason=named[0], name=named[1])
    return Kind(name=suffix_of(path) or "no ending")


def is_image(first: bytes) -> bool:
    """Whether bytes begin as a JPEG, PNG, WebP, TIFF or BMP does."""
    if first.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")):
        return True
    if first.startswith(b"RIFF"):
        return first[8:12] == b"WEBP"
    # "BM" alone would be much text: the size of the second header follows, and four bytes that are zero.
    return first.startswith(b"BM") and first[6:10] == bytes(4) and first[14:18] in _BMP_HEADERS


_BMP_HEADERS: Final = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def named_format(first: bytes) -> tuple[PassedReason, str] | None:
    """The format of what cannot be mined as it is, and what kind of trouble that is; None if it is not known."""
    for offset, mark, reason, name in _MARKS:
        if first[offset : offset + len(mark)] == mark:
            return reason, name
    start = first.lstrip()[:15].lower()
    return ("other", "an HTML page") if start.startswith((b"<!doctype html", b"<html")) else None
