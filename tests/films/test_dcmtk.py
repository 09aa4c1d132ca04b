"""DICOM films beside DCMTK's `dcmj2pnm`: the same grey values within one level.

- every place of the high bit, signed or not, with anything in the unused bits
- windows, rescale, VOI and modality tables whose first value is signed, by either VR, with 8 to 16 bits an entry
- MONOCHROME1 and 2 with each PresentationLUTShape; elements that are missing; 16-bit colour
- JPEG baseline, extended (12 bits) and lossless frames made by `dcmcjpeg`, JPEG-LS by `dcmcjpls`
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from make_films import dataset, encoded, gradient, in_bits, lut
from PIL import Image
from pydicom.dataset import FileDataset

from megpt.films.decode import load_film
from megpt.study import View

pytestmark = pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="needs the Debian package dcmtk")

RAMP12 = gradient(24, 96, top=4095, dtype=np.uint16)
WIDE = gradient(24, 96, top=65000, dtype=np.uint16)
SIGNED = gradient(24, 96, top=4000, dtype=np.int16) - 2000


def by_dcmtk(path: Path, *options: str) -> np.ndarray:
    done = subprocess.run(["dcmj2pnm", "--write-raw-pnm", *options, path], capture_output=True, check=False)
    assert done.stdout, done.stderr.decode()
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("L")).astype(int)


def ours(path: Path) -> np.ndarray:
    return np.asarray(load_film(View("x", uri=str(path)), size=None, max_pixels=10**7)).astype(int)


def agree(path: Path, data: FileDataset) -> None:
    if "VOILUTSequence" in data:
        options = ["+Wl", "1"]
    elif "WindowCenter" in data:
        options = ["+Wi", "1"]
    elif data.get("SamplesPerPixel") == 3:
        options = []
    else:
        options = ["+Wm"]
    path.write_bytes(encoded(data))
    wanted = by_dcmtk(path, *options)
    assert np.abs(ours(path) - wanted).max() <= 1
    assert wanted.max() - wanted.min() > 100


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits, high_bit", [(12, 15), (12, 14), (12, 12), (12, 11), (10, 13), (10, 15), (14, 15)])
def test_the_high_bit_may_be_anywhere(tmp_path, bits, high_bit, signed):
    values = gradient(24, 96, top=(1 << bits) - 1, dtype=np.int32) - ((1 << (bits - 1)) if signed else 0)
    data = in_bits(values, bits=bits, high_bit=high_bit, signed=signed, rest=0xFFFF)
    agree(tmp_path / "a.dcm", data)
    data.WindowCenter, data.WindowWidth = int(values.mean()), int(np.ptp(values) // 2)
    agree(tmp_path / "b.dcm", data)


@pytest.mark.parametrize("high_bit", [5, 6, 7])
def test_the_high_bit_in_a_byte(tmp_path, high_bit):
    data = in_bits(gradient(24, 96, top=63, dtype=np.int32), bits=6, high_bit=high_bit, allocated=8)
    data.WindowCenter, data.WindowWidth = 32, 64
    agree(tmp_path / "a.dcm", data)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 3000}])
def test_polarity(tmp_path, photometric, shape, window):
    tags = {"PhotometricInterpretation": photometric, **window}
    agree(tmp_path / "a.dcm", dataset(RAMP12, **tags, **({"PresentationLUTShape": shape} if shape else {})))


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("entry_bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    "pixels, tags, first",
    [
        (RAMP12, {"RescaleSlope": 1, "RescaleIntercept": -1024}, -1024),
        (RAMP12, {}, 0),
        (RAMP12, {}, 500),
        (SIGNED, {}, -2000),
        (SIGNED, {}, -500),
        (WIDE, {}, 40000),
    ],
)
def test_voi_lut(tmp_path, pixels, tags, first, entry_bits, vr):
    top = (1 << entry_bits) - 1
    curve = np.rint(top * np.sqrt(np.linspace(0, 1, 4096))).astype(int)
    bits = {"BitsStored": 12, "HighBit": 11} if pixels is RAMP12 else {}
    agree(tmp_path / "a.dcm", dataset(pixels, **bits, **tags, VOILUTSequence=lut(curve, first, entry_bits, vr)))


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("pixels, first", [(SIGNED, -2000), (SIGNED, -1000), (RAMP12, 0), (RAMP12, 1000)])
def test_modality_lut(tmp_path, pixels, first, vr):
    curve = np.rint(4095 * np.linspace(0, 1, 4096) ** 2).astype(int)
    data = dataset(pixels, ModalityLUTSequence=lut(curve, first, 12, vr))
    agree(tmp_path / "a.dcm", data)
    data.WindowCenter, data.WindowWidth = 1000, 2000
    agree(tmp_path / "b.dcm", data)


@pytest.mark.parametrize("missing", ["SamplesPerPixel", "HighBit", "PresentationLUTShape"])
def test_what_dcmtk_does_without(tmp_path, missing):
    data = dataset(RAMP12, PresentationLUTShape="IDENTITY")
    delattr(data, missing)
    agree(tmp_path / "a.dcm", data)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colour_of_any_depth(tmp_path, bits):
    top = (1 << bits) - 1
    grey = gradient(24, 96, top=top, dtype=np.uint8 if bits == 8 else np.uint16)
    data = dataset(np.dstack([grey, grey, grey[:, ::-1]]), BitsStored=bits, HighBit=bits - 1)
    agree(tmp_path / "a.dcm", data)


@pytest.mark.parametrize(
    "command, bits",
    [
        (["dcmcjpeg", "+eb"], 8),
        (["dcmcjpeg", "+ee"], 8),
        (["dcmcjpeg", "+ee"], 12),
        (["dcmcjpeg", "+el"], 12),
        (["dcmcjpeg", "+e1"], 16),
        (["dcmcjpls", "+el"], 12),
        (["dcmcjpls", "+en"], 12),
    ],
)
def test_compressed_by_dcmtk(tmp_path, command, bits, capfd):
    plain = tmp_path / "plain.dcm"
    pixels = gradient(24, 96, top=(1 << bits) - 1, dtype=np.uint8 if bits == 8 else np.uint16)
    plain.write_bytes(encoded(dataset(pixels, BitsStored=bits, HighBit=bits - 1, PresentationLUTShape="INVERSE")))
    packed = tmp_path / "packed.dcm"
    subprocess.run([*command, plain, packed], check=True)
    # eight bits are shown as they are, more are stretched to their range; dcmj2pnm itself does not read JPEG-LS
    readable = plain if command[0] == "dcmcjpls" else packed
    wanted = by_dcmtk(readable, *([] if bits == 8 else ["+Wm"]))
    assert np.abs(ours(packed) - wanted).max() <= 1
    assert wanted.max() > 250 and wanted.min() < 5
    assert capfd.readouterr() == ("", "")
