"""Pictures other than DICOM.

- all eight orientations of EXIF (JPEG, PNG, WebP) and of TIFF come out upright, at full and at reduced size
- 16-bit PNG is scaled by what nearly all pixels stay under: hot pixels and burnt-in letters do not darken a film
- 16 bits in colour and beside alpha count in full; TIFF of 8 and 16 bits, either byte order, packed or not, white is
  zero, floats, several pages; BMP; WebP; JPEG 2000 as a bare codestream and as JP2
- JPEG files of the kinds that only DICOM decoders read; a kind that nothing reads is named
- a header that claims too much is refused before memory is taken
"""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from jpeg_ls import encode as encode_jpeg_ls
from make_films import deep_png, gradient, jpeg, jpeg2000, picture, png
from PIL import Image, ImageOps

from megpt.films.decode import UnreadableFilm, check_film, load_film
from megpt.films.pictures import from_bits, full_scale
from megpt.study import View

FILES = Path(__file__).parent / "files"
RAMP12 = gradient(60, 100, top=4095, dtype=np.uint16)
GREY12 = np.rint(RAMP12 / 4095 * 255)


def load(data: bytes, size: int | None = None, max_pixels: int = 10**7) -> np.ndarray:
    image = load_film(View("x", data=data), size=size, max_pixels=max_pixels)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


def reason(data: bytes, max_pixels: int = 10**7) -> str:
    with pytest.raises(UnreadableFilm) as caught:
        load_film(View("x", data=data), size=16, max_pixels=max_pixels)
    return caught.value.reason


def turned(kind: str, orientation: int) -> tuple[bytes, np.ndarray]:
    """A file stored in this orientation, and what it looks like upright by Pillow's own rule."""
    image = Image.fromarray(np.maximum(gradient(200, 300), gradient(300, 200).T // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    if kind == "TIFF":
        image.save(buffer, kind, tiffinfo={0x0112: orientation})
    else:
        image.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with_tag = image.copy()
    with_tag.getexif()[0x0112] = orientation
    return buffer.getvalue(), np.asarray(ImageOps.exif_transpose(with_tag)).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation):
    data, upright = turned(kind, orientation)
    assert upright.shape == ((200, 300) if orientation < 5 else (300, 200))
    assert np.abs(load(data) - upright).max() <= 3
    small = load(data, size=32)
    assert small.shape == ((32, 48) if orientation < 5 else (48, 32))
    wanted = Image.fromarray(upright.astype(np.uint8)).resize(small.shape[::-1], Image.Resampling.BICUBIC)
    assert np.abs(small - np.asarray(wanted).astype(int)).max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_that_does_not_exist(orientation):
    assert load(turned("PNG", orientation)[0]).shape == (200, 300)


def test_broken_exif_data_do_not_lose_the_film():
    data = jpeg()
    broken = b"\xff\xe1" + struct.pack(">H", 2 + 14) + b"Exif\0\0II*\0\xff\xff\xff\xff"
    assert load(data[:2] + broken + data[2:]).shape == (40, 48)


@pytest.mark.parametrize("hot", [1, 3, 5])
def test_hot_pixels_do_not_darken_a_film(hot):
    pixels = RAMP12.copy()
    pixels.reshape(-1)[:hot] = 65535
    shown = load(png(pixels)).reshape(-1)
    assert np.array_equal(shown[hot:], GREY12.reshape(-1)[hot:]) and (shown[:hot] == 255).all()


def test_a_part_of_the_film_does_set_its_scale():
    pixels = RAMP12.copy()
    pixels[:3] = 65535
    assert load(png(pixels))[3:].max() == 16


def test_black_and_tiny_films():
    assert load(png(np.zeros((4, 4), np.uint16))).max() == 0
    assert load(png(np.full((1, 1), 4095, np.uint16))).max() == 255
    assert full_scale(np.zeros(0, np.uint16)) == 255


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=60)))
def test_nearly_all_pixels_keep_their_value(pixels):
    full = int(full_scale(pixels))
    bits, outliers = full.bit_length(), max(1, pixels.size // 1000) if pixels.size > 1 else 0
    assert full == (1 << bits) - 1 and 8 <= bits <= 16
    assert (pixels > full).sum() <= outliers
    assert bits == 8 or (pixels > full >> 1).sum() > outliers
    shown = np.asarray(from_bits(pixels)).astype(int)
    kept = pixels <= full
    assert np.abs(shown[kept] - pixels[kept] * 255.0 / full).max(initial=0) <= 0.5 and (shown[~kept] == 255).all()
    assert np.array_equal(np.asarray(from_bits(pixels.astype(np.int32))), shown)


def test_16_bits_in_colour_and_beside_alpha_count_in_full():
    for channels in ([RAMP12] * 3, [RAMP12] * 3 + [RAMP12 * 0 + 65535], [RAMP12, RAMP12 * 0 + 65535]):
        assert np.abs(load(deep_png(np.dstack(channels))) - GREY12).max() <= 1
    colour = np.dstack([RAMP12 * 0, RAMP12, RAMP12 * 0])
    assert np.abs(load(deep_png(colour)) - GREY12 * 0.587).max() <= 1
    wide = gradient(60, 100, top=65535, dtype=np.uint16)
    assert np.abs(load(deep_png(np.dstack([wide] * 3))) - wide / 257).max() <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("pixels, grey", [(gradient(), gradient()), (RAMP12, GREY12)])
def test_tiff(compression, pixels, grey):
    assert np.array_equal(load(picture(pixels, "TIFF", compression=compression)), grey)
    image = load_film(View("x", data=picture(pixels, "TIFF", compression=compression)), size=20, max_pixels=10**6)
    assert min(image.size) == 20


def test_tiff_of_other_kinds():
    big_endian = io.BytesIO()
    Image.fromarray(RAMP12.astype(">u2")).save(big_endian, "TIFF")
    assert np.array_equal(load(big_endian.getvalue()), GREY12)
    for compression in (None, "tiff_lzw"):
        white_is_zero = picture(RAMP12, "TIFF", tiffinfo={262: 0}, compression=compression)
        assert np.array_equal(load(white_is_zero), 255 - GREY12)
    assert np.abs(load(picture(RAMP12.astype(np.float32) / 4095, "TIFF")) - GREY12).max() <= 1
    assert np.array_equal(load(picture(RAMP12.astype(np.int32), "TIFF")), GREY12)
    rgb = np.dstack([gradient()] * 3)
    assert np.abs(load(picture(rgb, "TIFF")) - gradient()).max() <= 1
    pages = io.BytesIO()
    Image.fromarray(RAMP12).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(RAMP12[:, ::-1].copy())])
    assert np.array_equal(load(pages.getvalue()), GREY12)


def test_bmp_and_webp():
    assert np.array_equal(load(picture(gradient(), "BMP")), gradient())
    assert np.abs(load(picture(np.dstack([gradient()] * 3), "BMP")) - gradient()).max() <= 1
    assert np.abs(load(picture(gradient(), "WEBP", lossless=True)) - gradient()).max() <= 1
    assert np.abs(load(picture(gradient(), "WEBP", quality=95)) - gradient()).max() <= 4


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg2000_files(boxes, bits):
    top = (1 << bits) - 1
    pixels = gradient(60, 100, top=top, dtype=np.uint8 if bits == 8 else np.uint16)
    assert np.abs(load(jpeg2000(pixels, bits, boxes=boxes)) - pixels / top * 255).max() <= 1


@pytest.mark.parametrize("width, height", [(500, 601), (601, 500), (513, 1027), (500, 500)])
def test_jpeg2000_at_reduced_resolution(width, height):
    rng = np.random.default_rng(width)
    smooth = Image.fromarray(rng.random((12, 10), np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.rint(np.clip(np.asarray(smooth), 0, 1) * 4095).astype(np.uint16)
    small = load(jpeg2000(pixels, 12), size=40)
    full = Image.fromarray(load(jpeg2000(pixels, 12)).astype(np.uint8)).resize(
        small.shape[::-1], Image.Resampling.BICUBIC
    )
    assert np.abs(small - np.asarray(full).astype(int)).max() <= 3


def test_a_jpeg2000_file_that_is_cut_off_is_damaged_at_any_size():
    data = jpeg2000(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8), 8)
    assert reason(data[: len(data) * 2 // 3]).startswith("damaged JPEG 2000")


def test_jpeg_kinds_that_only_dicom_decoders_read():
    lossless = (FILES / "lossless.jpg").read_bytes()
    ramp = np.linspace(0, 4095, 96)
    assert np.abs(load(lossless) - ramp / 4095 * 255).max() <= 1
    assert np.array_equal(load(bytes(encode_jpeg_ls(RAMP12))), GREY12)
    assert load(lossless, size=20).shape == (20, 20)
    check_film(View("x", data=lossless), max_pixels=96 * 96)
    for read, options in ((load_film, {"size": None}), (check_film, {})):
        with pytest.raises(UnreadableFilm, match=r"^96x96 pixels, more than data\.max_pixels$"):
            read(View("x", data=lossless), max_pixels=96 * 96 - 1, **options)


@pytest.mark.parametrize(
    "marker, precision, what",
    [
        (0xC3, 18, "lossless, 18 bits, 1 channels"),
        (0xC5, 8, "frame type C5, 8 bits, 1 channels"),
        (0xC2, 12, "frame type C2, 12 bits, 1 channels"),
    ],
)
def test_a_jpeg_kind_that_nothing_reads_is_named(marker, precision, what):
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    assert reason(bytes(data)) == f"JPEG kind that is not supported ({what})"


def webp_claim(kind: bytes) -> bytes:
    """A WebP header that claims 16,000 × 16,000 pixels."""
    size = (16000 - 1).to_bytes(3, "little")
    body = {
        b"VP8X": struct.pack("<I", 10) + b"\0\0\0\0" + size + size,
        b"VP8L": struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 15999 | 15999 << 14) + b"\0" * 5,
        b"VP8 ": struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16000, 16000),
    }[kind]
    return b"RIFF" + struct.pack("<I", 4 + 4 + len(body)) + b"WEBP" + kind + body


def claims() -> dict[str, bytes]:
    tiff = bytearray(picture(gradient(), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in tiff else None
        at = tiff.index(struct.pack("<HHI", tag, 3, 1)) if at is None else at
        tiff[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 16000)
    bmp = bytearray(picture(gradient(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 16000, 16000)
    j2k = bytearray(jpeg2000(gradient()))
    j2k[8:16] = struct.pack(">II", 16000, 16000)
    webp = {f"webp {kind.decode().strip()}": webp_claim(kind) for kind in (b"VP8X", b"VP8L", b"VP8 ")}
    return {"tiff": bytes(tiff), "bmp": bytes(bmp), "jpeg2000": bytes(j2k), **webp}


@pytest.mark.parametrize("kind", sorted(claims()))
def test_a_claim_is_refused_before_memory_is_taken(kind):
    tracemalloc.start()
    try:
        assert reason(claims()[kind]) == "16000x16000 pixels, more than data.max_pixels"
        with pytest.raises(UnreadableFilm, match=r"more than data\.max_pixels$"):
            check_film(View("x", data=claims()[kind]), max_pixels=10**7)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
