"""One decoder: every format and mode becomes upright RGB by the stated rule, and what is broken is named."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.errors import SampleFailureError
from pipeline.sources.images import decode_rgb, decode_stored, read_header

LIMIT = 10**7


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 24, height: int = 16) -> np.ndarray:
    """(height, width, 3) uint8 without symmetry, smooth, so that lossy formats stay near it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([8 * x, 12 * y, 255 - 5 * x - 4 * y], axis=-1).clip(0, 255).astype(np.uint8)


def failure(data: bytes, *, limit: int = LIMIT) -> SampleFailureError:
    with pytest.raises(SampleFailureError) as caught:
        decode_rgb(data, max_pixels=limit)
    assert caught.value.stage == "decode"
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options", "ext", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, "jpg", 12),
        ("PNG", {}, "png", 0),
        ("WEBP", {"lossless": True}, "webp", 0),
        ("TIFF", {}, "tif", 0),
        ("TIFF", {"compression": "tiff_lzw"}, "tif", 0),
        ("BMP", {}, "bmp", 0),
    ],
)
def test_every_format_by_content(kind: str, options: dict[str, object], ext: str, tolerance: int) -> None:
    data = encoded(Image.fromarray(gradient()), kind, **options)
    header = read_header(data, max_pixels=LIMIT)
    assert (header.ext, header.width, header.height, header.exif_orientation) == (ext, 24, 16, 1)
    rgb = decode_rgb(data, max_pixels=LIMIT)
    assert (rgb.dtype, rgb.shape, rgb.flags.c_contiguous, rgb.flags.writeable) == (np.uint8, (16, 24, 3), True, True)
    assert np.abs(rgb.astype(int) - gradient()).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_upright_pixels(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :12], upright[8:, 12:] = (250, 20, 20), (20, 20, 250)
    inverse = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(inverse[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(stored), kind, exif=exif, **options)
    header = read_header(data, max_pixels=LIMIT)
    assert (header.width, header.height, header.exif_orientation) == (24, 16, orientation)
    rgb = decode_rgb(data, max_pixels=LIMIT)
    assert rgb.shape == upright.shape
    centres = [(4, 6), (12, 18), (4, 18), (12, 6)]
    assert all(np.abs(rgb[place].astype(int) - upright[place]).max() < 30 for place in centres)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_makes_no_sense_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(Image.fromarray(gradient()), "PNG", exif=exif)
    assert read_header(data, max_pixels=LIMIT).exif_orientation == 1
    assert decode_rgb(data, max_pixels=LIMIT).shape == (16, 24, 3)


def test_grey_and_bilevel() -> None:
    grey = gradient()[:, :, 0]
    rgb = decode_rgb(encoded(Image.fromarray(grey), "PNG"), max_pixels=LIMIT)
    assert np.array_equal(rgb, np.repeat(grey[:, :, None], 3, axis=2))
    bilevel = Image.fromarray(grey > 90)
    assert bilevel.mode == "1"
    rgb = decode_rgb(encoded(bilevel, "TIFF"), max_pixels=LIMIT)
    assert np.array_equal(rgb[:, :, 1], np.where(grey > 90, 255, 0))


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 30, 0, 90, 250])
    image.putpixel((1, 0), 1)
    rgb = decode_rgb(encoded(image, "PNG"), max_pixels=LIMIT)
    assert rgb.tolist() == [[[200, 10, 30], [0, 90, 250]]]
    rgb = decode_rgb(encoded(image, "PNG", transparency=1), max_pixels=LIMIT)
    assert rgb.tolist() == [[[200, 10, 30], [255, 255, 255]]]


def test_alpha_lies_over_white() -> None:
    rgba = np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], dtype=np.uint8)
    expected = [[[100, 0, 200], [255, 255, 255], [224, 204, 244]]]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert decode_rgb(encoded(Image.fromarray(rgba), kind, **options), max_pixels=LIMIT).tolist() == expected
    grey_alpha = Image.fromarray(np.array([[[100, 0]]], dtype=np.uint8), mode="LA")
    assert decode_rgb(encoded(grey_alpha, "PNG"), max_pixels=LIMIT).tolist() == [[[255, 255, 255]]]


def test_cmyk_of_jpeg_and_tiff() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    for kind in ("JPEG", "TIFF"):
        rgb = decode_rgb(encoded(flat, kind), max_pixels=LIMIT)
        assert np.abs(rgb[8, 8].astype(int) - (255, 0, 0)).max() < 8


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 4660, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 0x12, 255]
    for kind in ("PNG", "TIFF"):
        rgb = decode_rgb(encoded(Image.fromarray(values), kind), max_pixels=LIMIT)
        assert rgb[0, :, 0].tolist() == expected
        assert (rgb == rgb[:, :, :1]).all()
    assert decode_rgb(sixteen_bit_rgb_png(), max_pixels=LIMIT).tolist() == [[[0x12, 0xAB, 0xFF]]]


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def sixteen_bit_rgb_png() -> bytes:
    """One pixel of three 16-bit channels, written by hand: Pillow cannot."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0x1234, 0xABCD, 0xFFFF)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def wide_png(pixels: list[list[int]], *, alpha: bool = False) -> bytes:
    """One row of 16-bit colours."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(pixels), 1, 16, 6 if alpha else 2, 0, 0, 0))
    row = b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("largest", "shift"),
    [(0, 0), (255, 0), (256, 2), (1023, 2), (1024, 4), (4095, 4), (4096, 6), (16383, 6), (16384, 8), (65535, 8)],
)
def test_sixteen_bits_are_read_by_those_that_are_used(largest: int, shift: int) -> None:
    """Grey and colour, PNG and TIFF, with and without compression and alpha, in both orders of bytes."""
    values = [largest, largest // 2, largest // 3, 0]
    expected = [each >> shift for each in values]
    grey = Image.fromarray(np.array([values], dtype=np.uint16))
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF"), encoded(grey, "TIFF", compression="tiff_lzw")):
        assert decode_rgb(data, max_pixels=LIMIT)[0].tolist() == [[each] * 3 for each in expected]
    integers = Image.fromarray(np.array([values], dtype=np.int32))
    assert decode_rgb(encoded(integers, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == expected
    colours = [values[:3], values[1:]]
    rgb = [expected[:3], expected[1:]]
    assert decode_rgb(wide_png(colours), max_pixels=LIMIT)[0].tolist() == rgb
    for opaque in (4095, 65535):
        data = wide_png([[*colour, opaque] for colour in colours], alpha=True)
        assert decode_rgb(data, max_pixels=LIMIT)[0].tolist() == rgb
    stored = np.array([colours], dtype=np.uint16)
    for compression in (1, 5, 8):  # none, LZW, deflate
        done, tiff = cv2.imencode(".tif", stored[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        assert done
        assert decode_rgb(tiff.tobytes(), max_pixels=LIMIT)[0].tolist() == rgb
    big_endian = wide_tiff(stored)
    assert decode_rgb(big_endian, max_pixels=LIMIT)[0].tolist() == rgb
    assert decode_rgb(turned_tiff(big_endian), max_pixels=LIMIT)[:, 0].tolist() == rgb


def wide_tiff(values: np.ndarray, orientation: int = 1) -> bytes:
    """(H, W, 3) uint16 as a big-endian TIFF without compression."""
    height, width, _ = values.shape
    fields = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, 3, 8), (259, 3, 1, 1 << 16),
              (262, 3, 1, 2 << 16), (273, 4, 1, 14), (274, 3, 1, orientation << 16), (277, 3, 1, 3 << 16),
              (279, 4, 1, values.size * 2)]  # fmt: skip
    directory = 14 + values.size * 2
    entries = b"".join(struct.pack(">HHII", *field) for field in fields)
    start = b"MM\0*" + struct.pack(">I", directory) + struct.pack(">HHH", 16, 16, 16)
    return start + values.astype(">u2").tobytes() + struct.pack(">H", len(fields)) + entries + bytes(4)


def turned_tiff(data: bytes) -> bytes:
    """The same with the EXIF orientation 6."""
    place = data.index(struct.pack(">HHI", 274, 3, 1)) + 8
    return data[:place] + struct.pack(">H", 6) + data[place + 2 :]


def test_wide_integers_and_floats() -> None:
    wide = Image.fromarray(np.array([[-5, 0, 300, 70000]], dtype=np.int32))
    assert decode_rgb(encoded(wide, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 0, 1, 255]
    byte_sized = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert decode_rgb(encoded(byte_sized, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 7, 255]
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decode_rgb(encoded(unit, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 128, 255]
    stretched = Image.fromarray(np.array([[-10.0, np.nan, 41.0, np.inf, 14.0]], dtype=np.float32))
    assert decode_rgb(encoded(stretched, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 0, 255, 0, 120]


def test_the_first_of_several_pages() -> None:
    pages = [Image.new("RGB", (5, 4), colour) for colour in ((9, 8, 7), (200, 0, 0))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert (decode_rgb(data, max_pixels=LIMIT) == (9, 8, 7)).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be huge and is some hundred bytes long."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    error = failure(bomb(60_000, 60_000), limit=100_000_000)
    assert error.reason == "too_large"
    assert "60000 x 60000" in error.message
    with pytest.raises(SampleFailureError, match="too_large"):
        read_header(bomb(60_000, 60_000), max_pixels=100_000_000)
    error = failure(encoded(Image.fromarray(gradient()), "PNG"), limit=24 * 16 - 1)
    assert (error.reason, error.message) == (
        "too_large", "24 x 16 pixels, limit 383 (`mine` has --max-image-pixels)"
    )  # fmt: skip
    assert decode_rgb(encoded(Image.fromarray(gradient()), "PNG"), max_pixels=24 * 16).shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable"),
        (b"just some text, whatever it is called", "unsupported_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "unsupported_format"),
        (b"GIF89a" + bytes(40), "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n\0\0", "truncated"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    assert failure(data).reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_cut_images_fail_and_never_raise_anything_else(kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 256, size=(64, 80, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert failure(data[: int(len(data) * share)]).reason in ("truncated", "unreadable", "unsupported_format")


def reason_of(data: bytes, *, limit: int = LIMIT) -> str | None:
    """Why these bytes fail; None if they decode."""
    try:
        rgb = decode_rgb(data, max_pixels=limit)
    except SampleFailureError as error:
        return error.reason
    header = read_header(data, max_pixels=limit)
    return None if rgb.shape == (header.height, header.width, 3) else "another size than its header says"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_decode_or_fail_as_samples_do(kind: str) -> None:
    data = bytearray(encoded(Image.fromarray(gradient()), kind))
    random = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), size=3):
            damaged[place] = random.integers(0, 256)
        reason = reason_of(bytes(damaged), limit=10**5)
        assert reason in (None, "unreadable", "truncated", "unsupported_format", "too_large")


def damaged(data: bytes, random: np.random.Generator, count: int) -> Iterator[bytes]:
    """Copies with one byte changed, and each fifth cut."""
    for number in range(count):
        copy = bytearray(data)
        place = int(random.integers(0, len(data)))
        copy[place] ^= int(random.integers(1, 256))
        yield bytes(copy if number % 5 else copy[:place])


def pillow_reads(data: bytes) -> bool:
    """Pillow's strict answer: its check of the file, then its decoder, each on an object of its own."""
    formats = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > LIMIT:
                return False
            image.verify()
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {"exif": 6}),
        ("PNG", "RGB", {}), ("PNG", "RGB", {"exif": 6}), ("PNG", "P", {}), ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True, "exif": 6}),
        ("TIFF", "RGB", {"exif": 6}), ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "jpeg"}), ("BMP", "RGB", {}),
    ],
    ids=str,
)  # fmt: skip
def test_what_pillow_refuses_never_becomes_pixels(kind: str, mode: str, options: dict[str, object]) -> None:
    """Of 200 damaged copies of each kind, those that decode are exactly those that Pillow reads."""
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {**options, "exif": exif}
    data = encoded(Image.fromarray(gradient()).convert(mode), kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged tags
        for number, copy in enumerate(damaged(data, np.random.default_rng(7), 200)):
            assert (reason_of(copy) is None) == pillow_reads(copy), number


def png_with(pixels: bytes, *, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG of 2 x 1 grey pixels with these compressed rows, and chunks before and behind them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + behind + chunk(b"IEND", b"")


ROW = zlib.compress(b"\0\x07\xf0")


def test_the_header_is_read_without_decoding() -> None:
    """Pixels that no decoder takes, under right checksums: the header is there, and the pixels are refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = chunk(b"eXIf", exif.tobytes()[6:])
    for chunks in ({}, {"before": turned}, {"behind": turned}):
        header = read_header(png_with(b"no zlib", **chunks), max_pixels=LIMIT)
        orientation = 6 if chunks else 1
        assert (header.width, header.height) == ((1, 2) if chunks else (2, 1))
        assert header.exif_orientation == orientation
        assert failure(png_with(b"no zlib", **chunks)).reason == "unreadable"
        assert decode_rgb(png_with(ROW, **chunks), max_pixels=LIMIT)[:, :, 0].ravel().tolist() == [7, 240]
        with pytest.raises(SampleFailureError, match="unreadable"):
            decode_stored(png_with(b"no zlib", **chunks), max_pixels=LIMIT)


def test_a_pngs_wrong_checksum_is_named_wherever_it_stands() -> None:
    parts = {b"IDAT": {}, b"tEXt": {"before": chunk(b"tEXt", b"a\0b")}, b"eXIf": {"behind": chunk(b"eXIf", b"MM\0*")}}
    for kind, chunks in parts.items():
        data = bytearray(png_with(ROW, **chunks))
        data[data.index(kind) + 4 + len(ROW if kind == b"IDAT" else b"1234" if kind == b"eXIf" else b"a\0b")] ^= 1
        error = failure(bytes(data))
        assert (error.reason, "checksum" in error.message, kind.decode() in error.message) == ("unreadable", True, True)
        with pytest.raises(SampleFailureError, match="checksum"):
            decode_stored(bytes(data), max_pixels=LIMIT)


def test_megabytes_of_text_beside_whole_pixels_are_read() -> None:
    text = chunk(b"zTXt", b"history\0\0" + zlib.compress(bytes(5 * 2**20)))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20)))
    for chunks in ({"before": profile + text}, {"behind": text}):
        assert decode_rgb(png_with(ROW, **chunks), max_pixels=LIMIT)[0, :, 0].tolist() == [7, 240]


def test_an_orientation_in_xmp_alone_turns_every_format() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    for kind in ("JPEG", "WEBP", "TIFF"):
        options = {"tiffinfo": {700: xmp}} if kind == "TIFF" else {"xmp": xmp}
        data = encoded(Image.fromarray(gradient()), kind, **options)
        header = read_header(data, max_pixels=LIMIT)
        assert (header.width, header.height, header.exif_orientation) == (16, 24, 6), kind
        assert decode_rgb(data, max_pixels=LIMIT).shape == (24, 16, 3)


def test_label_images_are_read_as_they_are_stored() -> None:
    labels = np.array([[0, 1], [3, 2]], dtype=np.uint8)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette(bytes(range(256)) * 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        options = {"exif": exif} if kind == "PNG" else {}
        assert np.array_equal(decode_stored(encoded(palette, kind, **options), max_pixels=LIMIT), labels), kind
    assert decode_stored(encoded(Image.fromarray(labels > 1), "PNG"), max_pixels=LIMIT).tolist() == [[0, 0], [255, 255]]
    wide = np.array([[0, 65535]], dtype=np.uint16)
    assert np.array_equal(decode_stored(encoded(Image.fromarray(wide), "PNG"), max_pixels=LIMIT), wide)


def test_a_tiff_of_an_unusual_kind_is_not_called_cut() -> None:
    data = bytearray(encoded(Image.fromarray(gradient()[:, :, 0]), "TIFF"))
    bits = data.index(struct.pack("<HHIH", 258, 3, 1, 8))
    data[bits + 8] = 7
    assert failure(bytes(data)).reason == "unsupported_format"
    assert failure(bytes(data[:6])).reason == "truncated"


def test_photographs_of_scikit_image_decode(photographs: Path) -> None:
    paths = [path for path in photographs.iterdir() if path.suffix in (".png", ".jpg", ".tif", ".tiff")]
    for path in sorted(paths):
        if path.stat().st_size:
            assert reason_of(path.read_bytes()) in (None, "unsupported_format"), path.name
    assert len(paths) > 10


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"quality": 30}], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (17, 33), (181, 120)], ids=str)
def test_jpegs_decode_to_pillows_pixels(size: tuple[int, int], options: dict[str, object], subsampling: str) -> None:
    """Upright colour JPEGs take a way of their own; labels are the same whichever decoder a photograph meets."""
    noise = np.random.default_rng(0).normal(0, 9, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(128 + np.cumsum(noise, axis=1), 0, 255).astype(np.uint8))
    data = encoded(image, "JPEG", subsampling=subsampling, **options)
    with Image.open(io.BytesIO(data)) as decoded:
        expected = np.array(decoded)
    assert np.array_equal(decode_rgb(data, max_pixels=LIMIT), expected)


def test_a_jpeg_with_a_flaw_that_pillow_forgives_is_decoded_by_pillow() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", subsampling=0)
    scan = data.rindex(b"\xff\xda")
    flawed = data[:scan] + b"\0\0\0" + data[scan:]  # bytes between two segments: libjpeg warns and goes on
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(flawed)
    assert np.array_equal(decode_rgb(flawed, max_pixels=LIMIT), decode_rgb(data, max_pixels=LIMIT))


def test_the_size_that_was_checked_is_the_size_that_is_decoded() -> None:
    """Two headers in one file: Pillow reads the last one, libjpeg refuses; nobody allocates by the other one."""
    data = encoded(Image.fromarray(gradient()), "JPEG", subsampling=0)
    start = data.index(b"\xff\xc0")
    length = 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    large = bytearray(data[start : start + length])
    large[5:9] = b"\xff\xff\xff\xff"
    assert failure(data[:start] + bytes(large) + data[start:]).reason in ("unreadable", "truncated")
