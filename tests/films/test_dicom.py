"""DICOM films.

- MONOCHROME1 is inverted; a window, a modality rescale, modality and VOI look-up tables are applied, in that order
- the three window functions match the standard's formulas; a useless window falls back to the film's range
- padding is black and does not stretch the range; signed, 8-bit, 16-bit and 32-bit values work
- colour, palette and multi-frame files give the first frame in grey
- files without meta header, and compressed files whose frame claims another size, are handled
- nothing of the header is printed, logged, warned of, or quoted in an error
"""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from make_films import dataset, dicom_bytes, encoded, gradient, jpeg
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from megpt.films.decode import UnreadableFilm, load_film
from megpt.study import View


def show(data: bytes) -> np.ndarray:
    return np.asarray(load_film(View("x", data=data), size=None, max_pixels=10**7)).astype(int)


def table(entries: list[int], first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW" if bits > 8 else "US", np.asarray(entries, "<u2").tobytes() if bits > 8 else entries)
    return [item]


def test_eight_bits_without_a_window_are_shown_as_they_are():
    assert np.array_equal(show(dicom_bytes(gradient(top=200))), gradient(top=200))


def test_more_bits_without_a_window_are_stretched_to_their_range():
    pixels = gradient(top=3000, dtype=np.uint16) + 500
    assert np.array_equal(show(dicom_bytes(pixels)), np.rint((pixels - 500.0) * 255 / 3000))


def test_monochrome1_is_inverted():
    assert np.array_equal(show(dicom_bytes(PhotometricInterpretation="MONOCHROME1")), 255 - gradient())


@pytest.mark.parametrize(
    "function, expected",
    [
        ("LINEAR", lambda x: (x - 1999.5) / 1999 + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 2000) / 2000 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2000) / 2000))),
    ],
)
def test_window_functions(function, expected):
    pixels = gradient(top=4095, dtype=np.uint16)
    shown = show(dicom_bytes(pixels, WindowCenter=2000, WindowWidth=2000, VOILUTFunction=function))
    assert np.array_equal(shown, np.rint(np.clip(expected(pixels.astype(float)), 0, 1) * 255))


def test_the_first_of_several_windows_is_used():
    pixels = gradient(top=4095, dtype=np.uint16)
    one = show(dicom_bytes(pixels, WindowCenter=1000, WindowWidth=500))
    assert np.array_equal(show(dicom_bytes(pixels, WindowCenter=[1000, 3000], WindowWidth=[500, 9])), one)


@pytest.mark.parametrize("width, center", [(0, 100), (-5, 100), (100, 60000)])
def test_a_useless_window_falls_back_to_the_range(width, center):
    pixels = gradient(top=4095, dtype=np.uint16)
    assert np.array_equal(show(dicom_bytes(pixels, WindowCenter=center, WindowWidth=width)), show(dicom_bytes(pixels)))


def test_rescale_comes_before_the_window():
    pixels = gradient(top=4095, dtype=np.uint16)
    rescaled = show(dicom_bytes(pixels, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3000, WindowWidth=2000))
    assert np.array_equal(rescaled, np.rint(np.clip((pixels * 2.0 - 1000 - 2999.5) / 1999 + 0.5, 0, 1) * 255))


def test_modality_and_voi_tables():
    pixels = gradient(top=255, dtype=np.uint8)
    modality = table([4095 - 16 * n for n in range(256)], 0, 12)
    assert np.array_equal(
        show(dicom_bytes(pixels, ModalityLUTSequence=modality, RescaleSlope=1)),
        np.rint((4095 - 16.0 * pixels - 15) / (4095 - 15) * 255),
    )
    voi = table([min(255, 2 * n) for n in range(100)], 20, 8)
    expected = np.minimum(255, 2 * np.clip(pixels.astype(int) - 20, 0, 99))
    assert np.array_equal(show(dicom_bytes(pixels, VOILUTSequence=voi)), np.rint(expected / 255 * 255))
    # where both are given, the table is what the film was meant to look like
    both = dicom_bytes(pixels, VOILUTSequence=voi, WindowCenter=100, WindowWidth=10)
    assert np.array_equal(show(both), show(dicom_bytes(pixels, VOILUTSequence=voi)))


def test_twelve_bit_values_through_an_eight_bit_table():
    pixels = gradient(top=4095, dtype=np.uint16)
    voi = table([n * 255 // 4095 for n in range(4096)], 0, 8)
    assert np.abs(show(dicom_bytes(pixels, VOILUTSequence=voi)) - pixels / 4095 * 255).max() <= 1


def test_signed_and_wide_values():
    signed = gradient(top=3000, dtype=np.int16) - 1500
    assert np.array_equal(show(dicom_bytes(signed)), np.rint((signed + 1500.0) * 255 / 3000))
    wide = gradient(top=10**6, dtype=np.uint32)
    assert np.abs(show(dicom_bytes(wide)) - wide * 255 / 10**6).max() <= 1


def test_padding_is_black_and_does_not_stretch_the_range():
    pixels = gradient(top=1000, dtype=np.uint16) + 2000
    pixels[:10] = 65535
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        shown = show(dicom_bytes(pixels, PixelPaddingValue=65535, PhotometricInterpretation=photometric))
        assert not shown[:10].any()
        assert shown[10:].min() == 0 and shown[10:].max() == 255


def test_colour_palette_and_frames():
    rgb = np.dstack([gradient()] * 3)
    assert np.abs(show(dicom_bytes(rgb)) - gradient()).max() <= 1
    frames = np.stack([gradient(), 255 - gradient(), gradient()])
    assert np.array_equal(show(dicom_bytes(frames, NumberOfFrames=3)), gradient())
    palette = dataset(gradient(), PhotometricInterpretation="PALETTE COLOR")
    ramp = (np.arange(256)[::-1] * 257).astype("<u2").tobytes()
    for color in ("Red", "Green", "Blue"):
        setattr(palette, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(palette, f"{color}PaletteColorLookupTableData", ramp)
    assert np.abs(show(encoded(palette)) - (255 - gradient())).max() <= 1


def test_a_file_without_meta_header():
    data = dataset(gradient())
    del data.file_meta
    buffer = io.BytesIO()
    data.preamble = None
    data.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert buffer.getvalue()[:2] == b"\x08\x00"
    assert np.array_equal(show(buffer.getvalue()), gradient())


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_compression(syntax):
    data = dataset(gradient(top=4095, dtype=np.uint16))
    expected = show(encoded(data))
    data.compress(syntax)
    assert np.array_equal(show(encoded(data)), expected)


def jpeg_frame(pixels: np.ndarray, **tags) -> bytes:
    data = dataset(pixels, **tags)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([jpeg(pixels)])
    data["PixelData"].VR = "OB"
    return encoded(data)


def test_a_frame_that_claims_another_size():
    pixels = gradient(400, 400)
    assert np.abs(show(jpeg_frame(pixels)) - pixels).max() <= 2
    with pytest.raises(UnreadableFilm, match=r"^compressed frame larger than its DICOM header says$"):
        show(jpeg_frame(pixels, Rows=8, Columns=8))


@pytest.mark.parametrize(
    "data, reason",
    [
        (dicom_bytes(PixelData=None), "DICOM without pixel data"),
        (dicom_bytes(Rows=None), "DICOM without an image"),
        (dicom_bytes(Rows=0), "DICOM without an image"),
    ],
)
def test_files_that_are_no_pictures(data, reason):
    with pytest.raises(UnreadableFilm) as caught:
        show(data)
    assert caught.value.reason == reason


def test_nothing_of_the_header_leaves_the_file(tmp_path):
    odd = dataset(gradient(), BitsStored=5, HighBit=200)
    odd.add_new("StudyDate", "DA", "SECRET")
    odd.add_new("PatientAge", "AS", "SECRET")
    odd.add_new("PatientBirthDate", "LO", "SECRET \u00e9")
    whole = encoded(odd)
    (tmp_path / "odd.dcm").write_bytes(whole)
    (tmp_path / "cut.dcm").write_bytes(whole[:-300])
    (tmp_path / "uid.dcm").write_bytes(whole.replace(b"1.2.840.10008.1.2.1", b"9.9.SECRET.0008.1.2"))
    script = textwrap.dedent("""
        import sys, warnings, logging
        warnings.simplefilter("default")
        logging.basicConfig(level=logging.DEBUG)
        from megpt.films.decode import UnreadableFilm, load_film
        from megpt.study import View
        for path in sys.argv[1:]:
            try:
                load_film(View("x", uri=path), size=8, max_pixels=10**6)
                print("read")
            except UnreadableFilm as error:
                print("unreadable:", error.reason, repr(error.__cause__))
    """)
    paths = [str(p) for p in sorted(tmp_path.glob("*.dcm"))]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    assert "secret" not in (done.stdout + done.stderr).lower()
    assert "pydicom" not in done.stderr
    assert done.stdout.count("\n") == 3 and "unreadable: damaged DICOM" in done.stdout
