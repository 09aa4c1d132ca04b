"""DICOM files as they are met: bit layouts, missing elements, compressions, and sizes that are not what they seem.

- padding is a range, signed or not, in either order, whatever VR the file gives it
- a missing SamplesPerPixel, PhotometricInterpretation, PixelRepresentation, BitsAllocated, BitsStored or HighBit is
  filled in; names in any character set are never read
- every installed decoder is tried; a syntax without one is named, not called damaged; 12-bit JPEG Extended is read
- JPEG 2000 and JPEG at reduced resolution look like a full decode, and are left alone where they would not
- paths need not be UTF-8
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from make_films import dataset, dicom_bytes, encoded, gradient, in_bits, in_syntax, jpeg, jpeg2000
from PIL import Image
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEG2000MCLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from megpt.films import frames
from megpt.films.decode import UnreadableFilm, check_film, film_type, kind_of, load_film
from megpt.films.resize import shrink
from megpt.study import View

FILES = Path(__file__).parent / "files"
RAMP12 = gradient(48, 96, top=4095, dtype=np.uint16)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
SIZE12 = {"BitsStored": 12, "HighBit": 11}
LIMIT = 10**7


def show(data: bytes, size: int | None = None, max_pixels: int = LIMIT) -> np.ndarray:
    return np.asarray(load_film(View("x", data=data), size=size, max_pixels=max_pixels)).astype(int)


def reason(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(UnreadableFilm) as caught:
        show(data, max_pixels=max_pixels)
    return caught.value.reason


@pytest.mark.parametrize(
    "dtype, padded, value, limit",
    [
        (np.uint16, (65500, 65535), 65535, 65500),
        (np.uint16, (65500, 65535), 65500, 65535),
        (np.uint16, (0, 40), 0, 40),
        (np.uint16, (0, 40), 40, 0),
        (np.int16, (-2000, -1990), -2000, -1990),
        (np.int16, (-2000, -1990), -1990, -2000),
        (np.int16, (-5, 3), -5, 3),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_a_range(dtype, padded, value, limit, photometric):
    pixels = gradient(48, 96, top=1000, dtype=dtype) + dtype(100)
    film = pixels.copy()
    film[:, :5], film[:, -5:] = padded
    film[0, :5] = (padded[0] + padded[1]) // 2
    vr = "US" if dtype is np.uint16 else "SS"
    data = dataset(film, PhotometricInterpretation=photometric)
    data.add_new("PixelPaddingValue", vr, value)
    data.add_new("PixelPaddingRangeLimit", vr, limit)
    shown = show(encoded(data))
    assert not shown[:, :5].any() and not shown[:, -5:].any()
    inner = np.rint((pixels[:, 5:-5] - pixels[0, 5]) / (pixels[0, -6] - pixels[0, 5]) * 255.0)
    assert np.abs(shown[:, 5:-5] - (255 - inner if photometric == "MONOCHROME1" else inner)).max() <= 1
    if vr == "SS":  # many files say US for signed pixels
        for name, number in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
            data[name].VR, data[name].value = "US", number % 65536
        assert np.array_equal(show(encoded(data)), shown)


def test_missing_elements():
    whole = show(dicom_bytes(RAMP12))
    assert whole[0, 0] == 0 and whole[0, -1] == 255
    names = ("SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "BitsStored", "HighBit")
    for missing in (*((name,) for name in names), ("BitsAllocated",), names, (*names, "BitsAllocated")):
        data = dicom_bytes(RAMP12, **dict.fromkeys(missing))
        assert np.array_equal(show(data), whole), missing
        check_film(View("x", data=data), max_pixels=LIMIT)
    colour = np.dstack([gradient()] * 3)
    for missing in (("SamplesPerPixel",), ("PhotometricInterpretation",), ("PlanarConfiguration",)):
        assert np.abs(show(dicom_bytes(colour, **dict.fromkeys(missing))) - gradient()).max() <= 1


@pytest.mark.parametrize("tags", [{"HighBit": 200}, {"HighBit": 3}, {"BitsStored": 0}, {"BitsStored": 99}])
def test_impossible_bits_are_taken_as_the_usual_ones(tags):
    assert np.array_equal(show(dicom_bytes(RAMP12, **{"BitsStored": 12, **tags})), show(dicom_bytes(RAMP12)))


def test_unused_bits_do_not_show():
    clean = in_bits(RAMP12.astype(int), bits=12, high_bit=11)
    overlaid = in_bits(RAMP12.astype(int), bits=12, high_bit=11, rest=0x5000)
    assert np.array_equal(show(encoded(overlaid)), show(encoded(clean)))


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "NO SUCH SET", None])
def test_names_in_any_character_set(charset):
    data = dataset(RAMP12, SpecificCharacterSet=charset) if charset else dataset(RAMP12)
    raw = encoded(data).replace(b"Secret^Person", b"M\xfcller^J\xf6rg K")
    assert b"\xfc" in raw and np.array_equal(show(raw), show(dicom_bytes(RAMP12)))


def test_jpeg_extended_of_twelve_bits(capfd):
    data = (FILES / "extended12.dcm").read_bytes()
    assert np.abs(show(data)[48, [0, 24, 48, 72, 95]] - [0, 64, 129, 193, 255]).max() <= 1
    assert capfd.readouterr() == ("", "")


def test_every_decoder_is_tried(monkeypatch):
    data = encoded(in_syntax(dataset(RAMP12, **SIZE12, **WINDOW), JPEG2000Lossless, jpeg2000(RAMP12, 12)))
    whole, tried, real = show(data), [], frames._by_plugin

    def failing(dataset, plugin):
        tried.append(plugin)
        if plugin != "gdcm":
            raise RuntimeError
        return real(dataset, plugin)

    monkeypatch.setattr(frames, "_by_plugin", failing)
    assert np.array_equal(show(data), whole) and tried == ["pillow", "pylibjpeg", "gdcm"]


@pytest.mark.parametrize(
    "syntax, name",
    [
        (JPEG2000MCLossless, "JPEG 2000 Part 2 Multi-component Image Compression (Lossless Only)"),
        ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"),
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("9.9.999.1234", "an unknown transfer syntax"),
    ],
)
def test_a_syntax_without_a_decoder_is_named(syntax, name):
    data = in_syntax(dataset(RAMP12), JPEG2000Lossless, b"\0" * 64)
    uid = str(syntax).encode()
    # pydicom does not write what it does not know
    raw = encoded(data).replace(
        struct.pack("<H", 22) + b"1.2.840.10008.1.2.4.90",
        struct.pack("<H", len(uid) + len(uid) % 2) + uid + b"\0" * (len(uid) % 2),
    )
    assert reason(raw) == f"DICOM compression without a decoder: {name}"


def test_high_throughput_jpeg2000_is_not_taken_for_damage():
    data = encoded(in_syntax(dataset(RAMP12, **SIZE12), HTJ2KLossless, jpeg2000(RAMP12, 12)))
    assert np.array_equal(show(data), show(dicom_bytes(RAMP12, **SIZE12)))


def smooth(height: int, width: int, top: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.random((12, 10), np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.rint(np.clip(np.asarray(coarse), 0, 1) * top).astype(np.uint16 if top > 255 else np.uint8)


@pytest.mark.parametrize("height, width", [(601, 503), (500, 600), (1027, 513)])
@pytest.mark.parametrize("syntax, bits", [(JPEG2000Lossless, 12), (JPEG2000Lossless, 8), (JPEGBaseline8Bit, 8)])
def test_reduced_resolution_looks_like_a_full_decode(height, width, syntax, bits):
    pixels = smooth(height, width, (1 << bits) - 1)
    window = {"WindowCenter": 1 << (bits - 1), "WindowWidth": 1 << bits, "PhotometricInterpretation": "MONOCHROME1"}
    frame = jpeg2000(pixels, bits) if syntax == JPEG2000Lossless else jpeg(pixels, quality=98)
    data = encoded(in_syntax(dataset(pixels, BitsStored=bits, HighBit=bits - 1, **window), syntax, frame))
    full = np.asarray(shrink(Image.fromarray(show(data).astype(np.uint8)), 40)).astype(int)
    small = show(data, size=40)
    assert small.shape == full.shape and np.abs(small - full).max() <= 3


@pytest.mark.parametrize("tags", [{}, {**WINDOW, "PixelPaddingValue": 0}, {**WINDOW, "PixelRepresentation": 1}])
def test_where_reduced_resolution_would_change_the_film_it_is_not_used(tags):
    rng = np.random.default_rng(0)
    noisy = (1000 + smooth(600, 500, 500) + rng.normal(0, 60, (600, 500))).astype(np.uint16)
    plain = dicom_bytes(noisy, **SIZE12, **tags)
    packed = encoded(in_syntax(dataset(noisy, **SIZE12, **tags), JPEG2000Lossless, jpeg2000(noisy, 12)))
    assert np.array_equal(show(packed, size=40), show(plain, size=40))


@pytest.mark.parametrize("size", [None, 40])
def test_a_compressed_frame_that_is_cut_off_is_damaged_at_any_size(size):
    pixels = np.random.default_rng(0).integers(0, 4095, (600, 500)).astype(np.uint16)
    frame = jpeg2000(pixels, 12)
    data = encoded(in_syntax(dataset(pixels, **SIZE12, **WINDOW), JPEG2000Lossless, frame[: len(frame) // 2]))
    with pytest.raises(UnreadableFilm, match=r"^damaged DICOM"):
        show(data, size=size)


def test_a_path_that_is_no_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"M\xfcller.dcm")
    path.write_bytes(dicom_bytes(RAMP12))
    assert kind_of(path) == "dicom"
    assert load_film(View("x", uri=str(path)), size=None, max_pixels=LIMIT).size == (96, 48)


def test_big_endian_tables():
    voi = dataset(RAMP12, **SIZE12)
    item = dataset(RAMP12)
    item.clear()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", np.arange(4096)[::-1].astype("<u2").tobytes())
    voi.VOILUTSequence = [item]
    wanted = show(encoded(voi))
    voi.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    item.LUTData = np.arange(4096)[::-1].astype(">u2").tobytes()
    voi.PixelData = RAMP12.astype(">u2").tobytes()
    voi.set_original_encoding(False, False)
    assert np.array_equal(show(encoded(voi)), wanted) and wanted[0, 0] == 255


def test_kind_of(tmp_path):
    (tmp_path / "IM0001").write_bytes(dicom_bytes())
    (tmp_path / "a.img").write_bytes(jpeg())
    (tmp_path / "a.txt").write_text("BMW drivers")
    assert kind_of(tmp_path / "IM0001") == "dicom" and kind_of(str(tmp_path / "a.img")) == "jpeg"
    assert kind_of(tmp_path / "a.txt") is None and kind_of(tmp_path) is None and kind_of(tmp_path / "none") is None
    # pathology files are TIFF and DICOM at once
    assert film_type(b"II*\0" + dicom_bytes()[4:]) == "dicom"


def test_extended_with_sixteen_bits_has_no_decoder():
    frame = bytearray(jpeg(gradient(48, 96)))
    at = frame.index(b"\xff\xc0")
    frame[at : at + 5] = b"\xff\xc1" + frame[at + 2 : at + 4] + struct.pack("B", 16)
    data = encoded(in_syntax(dataset(RAMP12), JPEGExtended12Bit, bytes(frame)))
    assert reason(data).endswith("JPEG Extended (Process 2 and 4), 16 bits, 1 channels")
