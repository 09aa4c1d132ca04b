"""Films.

- a film's type is read from its bytes: a wrong or missing suffix does not matter
- JPEG (grey, colour, progressive, CMYK) and PNG (1, 8 and 16 bit, palette, alpha) give the right grey values
- 16-bit PNG is scaled by the bits in use, not cut off at 255
- the shorter side comes out at `size`, never enlarged, and draft decoding stays within two grey levels of a full decode
- missing, empty, truncated, foreign and pipe-like files are UnreadableFilm with a short reason
- a DICOM header of endless empty elements is given up
- a header that claims more pixels than `max_pixels` is refused before anything is decoded; exactly as many are allowed
- a study gives all its readable films, and fails only when none is
- random damage never raises anything but UnreadableFilm
"""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_films import dataset, deep_png, deflated, dicom_bytes, gradient, jpeg, jpeg2000, picture, png
from PIL import Image

from megpt.films.decode import UnreadableFilm, check_film, film_type, load_film, load_films, read_film
from megpt.films.resize import shrink
from megpt.study import Study, View

LIMIT = 10**8


def load(data: bytes, size: int | None = None, max_pixels: int = LIMIT) -> np.ndarray:
    image = load_film(View("x", data=data), size=size, max_pixels=max_pixels)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


def reason(view: View, **options) -> str:
    with pytest.raises(UnreadableFilm) as caught:
        load_film(view, **{"size": 16, "max_pixels": LIMIT, **options})
    return caught.value.reason


@pytest.mark.parametrize(
    "data, expected", [(jpeg(), "jpeg"), (png(), "png"), (dicom_bytes(), "dicom"), (b"GIF89a", None)]
)
def test_the_type_is_read_from_the_bytes(data, expected):
    assert film_type(data[:132]) == expected


def test_a_wrong_suffix_does_not_matter(tmp_path):
    for name, data in (("a.png", jpeg()), ("b.jpg", dicom_bytes()), ("c", png())):
        path = tmp_path / name
        path.write_bytes(data)
        image = load_film(View("x", uri=str(path)), size=None, max_pixels=LIMIT)
        assert np.abs(np.asarray(image).astype(int) - gradient()).max() <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options):
    assert np.abs(load(picture(gradient(), "JPEG", quality=98, **options)) - gradient()).max() <= 1


def test_colour_is_turned_to_grey():
    rgb = np.dstack([gradient()] * 3)
    assert np.abs(load(picture(rgb)) - gradient()).max() <= 1
    assert np.abs(load(picture(rgb, "JPEG", quality=98)) - gradient()).max() <= 2
    with_alpha = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    assert np.abs(load(picture(with_alpha)) - gradient()).max() <= 1


def test_palette_png():
    image = Image.fromarray(gradient()).convert("P")
    buffer_of = picture(np.asarray(image.convert("L")))
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert np.array_equal(load(buffer.getvalue()), load(buffer_of))


def test_one_bit_png():
    bits = gradient() > 127
    assert np.array_equal(load(picture(bits)), bits * 255)


@pytest.mark.parametrize("top", [65535, 4095, 1023])
def test_16_bit_png_is_scaled_by_the_bits_in_use(top):
    pixels = gradient(top=top, dtype=np.uint16)
    assert np.array_equal(load(picture(pixels)), np.rint(pixels.astype(float) * 255 / top).astype(int))


def test_16_bit_png_of_8_bit_values_is_not_stretched():
    pixels = gradient(top=200, dtype=np.uint16)
    assert np.array_equal(load(picture(pixels)), pixels)


@pytest.mark.parametrize("encode", [jpeg, png, dicom_bytes])
def test_the_shorter_side_comes_out_at_size(encode):
    assert load(encode(gradient(300, 200)), size=64).shape == (96, 64)
    assert load(encode(gradient(200, 300)), size=64).shape == (64, 96)
    assert load(encode(gradient(30, 20)), size=64).shape == (30, 20)
    assert load(encode(gradient(300, 200)), size=None).shape == (300, 200)


def test_draft_decoding_is_faithful():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (30, 25), np.uint8)).resize((1250, 1500), 3))
    data = jpeg(smooth)
    drafted = load(data, size=112)
    full = np.asarray(shrink(Image.fromarray(load(data).astype(np.uint8)), 112)).astype(int)
    assert drafted.shape == full.shape == (134, 112)
    assert np.abs(drafted - full).max() <= 2


def test_files_that_are_no_films(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("Patient: Secret Person")
    os.mkfifo(tmp_path / "pipe")
    assert reason(View("x", uri=str(tmp_path / "absent.png"))) == "missing file"
    assert reason(View("x", uri=str(tmp_path / "text.jpg" / "below.png"))) == "missing file"
    assert reason(View("x", uri=str(tmp_path / "empty"))) == "empty file"
    assert reason(View("x", data=b"")) == "empty file"
    assert (
        reason(View("x", uri=str(tmp_path / "text.jpg"))) == "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file"
    )
    assert reason(View("x", uri=str(tmp_path))) == "not a file"
    assert reason(View("x", uri=str(tmp_path / "pipe"))) == "not a file"
    assert reason(View("x")) == "no path inside the archive"
    assert reason(View("x", uri="a\0b")) == "cannot be opened (ValueError)"


@pytest.mark.parametrize("encode, kind", [(jpeg, "JPEG"), (png, "PNG"), (dicom_bytes, "DICOM")])
def test_a_truncated_film(encode, kind):
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 256, (60, 60), np.uint8))
    assert reason(View("x", data=data[: len(data) * 2 // 3])).startswith(f"damaged {kind}")


def bomb_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def bomb_jpeg() -> bytes:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


@pytest.mark.parametrize(
    "data, size",
    [(bomb_png(100_000, 100_000), "100000x100000"), (bomb_jpeg(), "65000x65000"), (dicom_bytes(Rows=60000), None)],
)
def test_a_bomb_is_refused_by_its_header(data, size):
    view = View("x", data=data)
    text = reason(view, max_pixels=10**6)
    assert text.endswith("more than data.max_pixels") and (size is None or text.startswith(size))
    with pytest.raises(UnreadableFilm, match=r"more than data\.max_pixels"):
        check_film(view, max_pixels=10**6)


@pytest.mark.parametrize(
    "elements",
    [b"\0" * 2_000_000, b"\x02\0\x01\0OB\0\0\0\0\0\0" * 200_000, b"\x08\0\x05\0CS\0\0" * 200_000],
    ids=["commands", "meta", "header"],
)
def test_a_header_of_empty_elements_is_not_read_for_minutes(elements):
    view = View("x", data=bytes(128) + b"DICM" + elements)
    with pytest.raises(UnreadableFilm, match=r"^damaged DICOM \(a header without end\)$"):
        check_film(view, max_pixels=10**6)


@pytest.mark.parametrize("encode", [jpeg, png, dicom_bytes])
def test_max_pixels_is_the_largest_film_allowed(encode):
    view = View("x", data=encode(gradient(40, 50)))
    assert load_film(view, size=None, max_pixels=2000).size == (50, 40)
    check_film(view, max_pixels=2000)
    assert reason(view, max_pixels=1999) == "50x40 pixels, more than data.max_pixels"
    with pytest.raises(UnreadableFilm, match=r"^50x40 pixels, more than data\.max_pixels$"):
        check_film(view, max_pixels=1999)


def test_check_reads_the_header_only():
    data = jpeg(gradient(200, 200))
    check_film(View("x", data=data[: len(data) // 2]), max_pixels=LIMIT)
    check_film(View("x", data=dicom_bytes()[:-500]), max_pixels=LIMIT)
    with pytest.raises(UnreadableFilm, match="not a JPEG"):
        check_film(View("x", data=b"GIF89a"), max_pixels=LIMIT)


def test_read_film_gives_the_file_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(png())
    assert read_film(View("x", uri=str(tmp_path / "a"))) == png()
    with pytest.raises(UnreadableFilm, match="empty file"):
        read_film(View("x", data=b""))


def test_a_study_gives_all_its_readable_films():
    good, bad = View("a", data=png()), View("b", data=b"nothing")
    options = {"size": 16, "max_views": None, "max_pixels": LIMIT}
    assert len(load_films(Study("s", views=(bad, good, good)), **options)) == 2
    assert len(load_films(Study("s", views=(good, good, good)), **{**options, "max_views": 2})) == 2
    empty = View("c", data=b"")
    for films, text in (((bad,), ""), ((bad, empty), " (and 1 more)"), ((bad, empty, empty), " (and 2 more)")):
        with pytest.raises(UnreadableFilm) as caught:
            load_films(Study("s", views=films), **options)
        assert caught.value.reason == "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file" + text
    with pytest.raises(UnreadableFilm, match=r"^empty file$"):
        load_films(Study("s", views=(empty, good)), **{**options, "max_views": 1})
    with pytest.raises(UnreadableFilm, match=r"^the study has no films$"):
        load_films(Study("s"), **options)


DEEP = gradient(top=4095, dtype=np.uint16)
# Without frames for the helper process: its restarts after a crash would take most of the time.
SAMPLES = [
    *(jpeg(), png(), png(DEEP), deep_png(np.dstack([DEEP] * 3)), jpeg2000(DEEP, 12), jpeg2000(DEEP, 12, boxes=True)),
    *(picture(DEEP, "TIFF"), picture(DEEP, "TIFF", compression="tiff_lzw"), picture(gradient(), "BMP")),
    *(picture(gradient(), "WEBP"), dicom_bytes(), dicom_bytes(DEEP), deflated(dataset(DEEP))),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_random_damage_is_an_unreadable_film_or_a_picture(sample, data):
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        assert load(bytes(damaged[:cut]), size=16, max_pixels=10**6).size
    except UnreadableFilm as error:
        assert 0 < len(error.reason) < 100 and "\n" not in error.reason
