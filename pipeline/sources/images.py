"""Image bytes to upright RGB: one decoder for mining, viewing and training.

Formats are an allow-list (JPEG, PNG, WebP, TIFF, BMP) by content, whatever the file is called. The size is read from
the header and checked before anything is decoded. Bytes that Pillow refuses are never pixels: a file that is cut, also
by two bytes, or whose checksums do not hold, is a failure and no partly black picture. Metadata is read from an
image object of its own, since Pillow decodes to find a PNG's and forgets that it could not. Every mode becomes RGB by
one rule:

- grey and palette: as the format says;
- alpha: over white;
- CMYK: Pillow's conversion (inverted Adobe files included), no colour profile is applied;
- 16 bits a channel: the upper eight of those that the image uses, which are the least of 8, 10, 12, 14 and 16 that hold
  its largest value; so twelve bits of a camera in a 16-bit file are no black picture, and two images with the same
  numbers look alike. Colours share one such range, alpha has its own; PNG's grey with alpha keeps the high byte;
- 32-bit integers likewise, clipped to 0 ... 65535;
- floats: from [0, 1] if they lie there, else stretched from their smallest to their largest finite value;
- several frames or pages: the first.

The EXIF orientation (JPEG, PNG, WebP, TIFF) is applied, so that pixels, masks and sizes are upright everywhere. A
image of P pixels needs about 10 P bytes while it is decoded (600 MB for 60 megapixels).

Pillow reads all of them. Upright colour JPEGs, which is nearly all that is mined and trained on, are decoded by
libjpeg-turbo straight into the array (simplejpeg): the same pixels in half the time.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import FailureStage, SampleFailureError

FORMATS: Final = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
"""Pillow's name -> extension of the shard's member."""

_OPENERS: Final = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA: Final = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks with an orientation, which may stand behind the pixels."""
_MAGIC: Final = (b"\xff\xd8", _PNG, b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})
_WIDE: Final = re.compile(r"(RGB|RGBA|RGBX|R|G|B|A);16[LBN]")
MAX_STORED_PIXELS: Final = 1_000_000_000
"""Of an image of a shard, read again: it was checked when it was mined, so this bounds what a damaged one claims."""
BIT_DEPTHS: Final = (8, 10, 12, 14, 16)
"""Of cameras and scanners, in files of 16 bits."""
_BROKEN: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError)
"""What Pillow raises on bytes that are not what they claim."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""

# Editors write megabytes of history and colour profiles beside whole pixels; Pillow's limit for one text is 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# Sizes are checked here, by `max_pixels`, before decoding; Pillow's own warning would be a second, lower limit.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What is known of an image before it is decoded.

    Attributes:
        ext: `jpg`, `png`, `webp`, `tif` or `bmp`, by content.
        width: pixels, upright.
        height: pixels, upright.
        exif_orientation: 1..8 as stored; 1 if there is none or it makes no sense.
    """

    ext: str
    width: int
    height: int
    exif_orientation: int


def read_header(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Reads format, size and orientation without decoding.

    Raises:
        SampleFailureError: `unreadable`, `truncated`, `unsupported_format` or `too_large`.
    """
    return _read_header(data, max_pixels)[0]


def decode_rgb(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes to upright RGB: (H, W, 3) uint8, contiguous, writable.

    Raises:
        SampleFailureError: as `read_header`, and `truncated` or `unreadable` for damaged pixel data.
    """
    return decode_image(data, max_pixels=max_pixels)[1]


def decode_image(data: bytes, *, max_pixels: int) -> tuple[ImageHeader, NDArray[np.uint8]]:
    """`read_header` and `decode_rgb` in one.

    Raises:
        SampleFailureError: as `decode_rgb`.
    """
    header, is_plain_jpeg = _read_header(data, max_pixels)
    if is_plain_jpeg and (rgb := _whole_jpeg(data, header)) is not None:
        return header, rgb
    with _quiet(), _open(data, _OPENERS) as image:
        try:
            wide = _is_wide(image)
            image.load()
            if wide:
                image = _narrowed(image, data)
            # TIFF applies its orientation while loading.
            turn = None if header.ext == "tif" else _UPRIGHT.get(header.exif_orientation)
            rgb = _to_rgb(image if turn is None else image.transpose(turn))
        except _BROKEN as error:
            raise _damaged(error, data) from error
    if rgb.shape != (header.height, header.width, 3):
        raise SampleFailureError(
            "unreadable", "decode", f"decoded to {rgb.shape}, its header says {(header.height, header.width, 3)}"
        )
    return header, rgb


def decode_stored(data: bytes, *, max_pixels: int) -> NDArray[Any]:
    """A label image as it is stored: (H, W) or (H, W, C), palette indices as they are, bits as 0 and 255.

    Neither turned nor converted. GIF is read besides the formats of photographs.

    Raises:
        SampleFailureError: as `decode_rgb`.
    """
    if data.startswith(_PNG):
        _checked_png(data, max_pixels)
    with _quiet(), _open(data, (*_OPENERS, "GIF")) as image:
        _check_size(image.size, max_pixels)
        try:
            return np.array(image.convert("L") if image.mode == "1" else image)
        except _BROKEN as error:
            raise _damaged(error, data) from error


def _read_header(data: bytes, max_pixels: int) -> tuple[ImageHeader, bool]:
    """The header, and whether it is that of an upright colour JPEG."""
    with _quiet(), _open(_checked_png(data, max_pixels) if data.startswith(_PNG) else data, _OPENERS) as image:
        header = _header(image, max_pixels)
        return header, image.format == "JPEG" and image.mode == "RGB" and header.exif_orientation == 1


def _whole_jpeg(data: bytes, header: ImageHeader) -> NDArray[np.uint8] | None:
    """An upright colour JPEG without a flaw, (H, W, 3) uint8; None: Pillow decodes or refuses it."""
    try:
        # Its own reading of the size must be the one that was checked: the array is as large as it says.
        if simplejpeg.decode_jpeg_header(data)[:2] != (header.height, header.width):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:  # whatever libjpeg warns of
        return None


def _checked_png(data: bytes, max_pixels: int) -> bytes:
    """The PNG without its pixels, metadata that stands behind them in front; nothing is decoded.

    Raises:
        SampleFailureError: `too_large`; `truncated` or `unreadable`: it is cut, or a checksum does not hold.
    """
    if data[12:16] == b"IHDR" and len(data) >= 24:
        _check_size(struct.unpack_from(">II", data, 16), max_pixels)
    kept, pixels, position = [data[: len(_PNG)]], b"", len(_PNG)
    while data[position + 4 : position + 8] != b"IEND":
        chunk = data[position : position + 8]
        end = position + 12 + int.from_bytes(chunk[:4], "big")
        name = chunk[4:].decode("ascii", "backslashreplace")
        if end > len(data):
            raise SampleFailureError("truncated", "decode", f"{len(data)} bytes end before the PNG's {name or 'end'}")
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise SampleFailureError(
                "unreadable", "decode", f"the PNG's {name} at byte {position} has a wrong checksum"
            )
        if chunk[4:] in (b"IDAT", b"fdAT"):
            pixels = pixels or chunk
        elif not pixels or chunk[4:] in _PNG_METADATA:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, pixels])


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    if not data:
        raise SampleFailureError("unreadable", "decode", "zero bytes")
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        if data.startswith(_MAGIC) and not _has_tiff_directory(data):
            raise SampleFailureError("truncated", "decode", f"{len(data)} bytes hold no whole image header") from error
        start = data[:8].hex(" ")
        raise SampleFailureError(
            "unsupported_format",
            "decode",
            f"expected a JPEG, PNG, WebP, TIFF or BMP of a kind that Pillow reads, found bytes that begin {start}",
        ) from error
    except _BROKEN as error:
        raise _damaged(error, data) from error


def _has_tiff_directory(data: bytes) -> bool:
    """Whether the bytes are a TIFF with its directory inside: what is then not read is a kind that Pillow lacks."""
    order = {b"II*\0": "<I", b"MM\0*": ">I"}.get(data[:4])
    return order is not None and len(data) >= 8 and struct.unpack(order, data[4:8])[0] < len(data) - 2


def _header(image: Image.Image, max_pixels: int) -> ImageHeader:
    width, height = image.size
    _check_size((width, height), max_pixels)
    orientation = _orientation(image)
    # Pillow reports the upright size of a TIFF that has the tag.
    turned = isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    if orientation >= 5 and not turned:
        width, height = height, width
    return ImageHeader(ext=FORMATS[str(image.format)], width=width, height=height, exif_orientation=orientation)


def _check_size(size: tuple[int, ...], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise SampleFailureError("unreadable", "decode", f"its header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise SampleFailureError(
            "too_large", "decode", f"{width} x {height} pixels, limit {max_pixels:,} (`mine` has --max-image-pixels)"
        )


def _orientation(image: Image.Image) -> int:
    """1..8; of an image object that decodes nothing afterwards."""
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # a PNG's own `getexif` decodes it
    except _BROKEN:  # damaged metadata around whole pixels: such images are shown as they are stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    mode = image.mode
    if mode in _SIXTEEN_BIT:
        grey = _upper_eight(np.clip(np.asarray(image), 0, 65535).astype(np.uint16))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode == "F":
        return np.repeat(_stretch(np.asarray(image, dtype=np.float64))[:, :, None], 3, axis=2)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        alpha = rgba[:, :, 3:].astype(np.uint16)
        over_white = rgba[:, :, :3].astype(np.uint16) * alpha + 255 * (255 - alpha) + 127
        return (over_white // 255).astype(np.uint8)
    return np.array(image if mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _upper_eight(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The upper eight of the bits that are used: the least of `BIT_DEPTHS` that hold the largest value."""
    largest = int(values.max())
    bits = next(bits for bits in BIT_DEPTHS if largest < 1 << bits)
    return (values >> (bits - 8)).astype(np.uint8)


def _is_wide(image: Image.Image) -> bool:
    """Whether these are colours of 16 bits, of which Pillow gives the high bytes; before they are loaded."""
    return bool(getattr(image, "tile", ())) and all(_WIDE.match(_raw_mode(tile)) for tile in image.tile)  # type: ignore[attr-defined]


def _narrowed(image: Image.Image, data: bytes) -> Image.Image:
    """Colours of 16 bits by the rule for them; the low bytes are decoded only where the high ones are nearly empty."""
    high = np.asarray(image)
    parts = [slice(0, 3), *([slice(3, 4)] if high.shape[2] == 4 else [])]  # colours, alpha
    if all(high[:, :, part].max() >= 1 << (BIT_DEPTHS[-2] - 8) for part in parts):
        return image
    with _open(data, _OPENERS) as again:
        again.tile = [tile._replace(args=_other_half(tile.args)) for tile in again.tile]  # type: ignore[attr-defined]
        low = np.asarray(again)
    values = high.astype(np.uint16) << 8 | low
    return Image.fromarray(np.concatenate([_upper_eight(values[:, :, part]) for part in parts], axis=2), image.mode)


def _raw_mode(tile: Any) -> str:
    """How the bytes of a part of an image lie: `RGB;16L` for instance."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else "")


def _other_half(args: Any) -> Any:
    """The same bytes, as if they lay in the other order: Pillow then takes the low ones for the high ones."""
    if not isinstance(args, str):
        return (_other_half(args[0]), *args[1:])
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    order = args[-1].replace("N", native)
    return args[:-1] + (other if order == native else native)


def _stretch(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.clip(np.rint((np.where(finite, values, low) - low) * scale), 0, 255).astype(np.uint8)


def _damaged(error: BaseException, data: bytes) -> SampleFailureError:
    text = str(error) or type(error).__name__
    short = isinstance(error, EOFError) or any(
        word in text.lower() for word in ("truncated", "end of file", "unexpected end", "incomplete", "not enough")
    )
    if data.startswith(b"RIFF"):  # of which libwebp does not say it
        short = short or len(data) < 8 + int.from_bytes(data[4:8], "little")
    stage: FailureStage = "decode"
    return SampleFailureError("truncated" if short else "unreadable", stage, text)
