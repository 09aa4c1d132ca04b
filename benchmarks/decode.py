"""Films a second on one core: megpt's decoding beside plain loops over Pillow and pydicom, in one run, taking turns.

    OMP_NUM_THREADS=1 python benchmarks/decode.py --out benchmarks/results/decode-DATE.json

The films are drawn: 2500×3000 grey with film-like noise, as JPEG (quality 95, about the 1.5 MB that MIMIC-CXR-JPG's
films have on average), 12-bit DICOM (uncompressed, JPEG 2000, RLE) and 16-bit PNG; wanted is a shorter side of 224.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid
from record import record, save

from megpt.films.decode import load_film
from megpt.films.resize import shrink
from megpt.study import View

HEIGHT, WIDTH, SIZE = 3000, 2500, 224
TARGETS = {"megpt, JPEG": 40.0, "megpt, DICOM": 20.0, "megpt, DICOM, JPEG 2000": 8.0}


def draw(seed: int) -> np.ndarray:
    """(3000, 2500) float in [0, 1]: soft shapes, sharp ribs, quantum noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.random((12, 10), np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    ribs = 0.06 * np.sign(np.sin(rows / 90 + np.abs(columns - WIDTH / 2) / 300))
    noise = rng.normal(0, 0.008, (HEIGHT, WIDTH)).astype(np.float32)
    return np.clip(0.2 + 0.5 * np.asarray(coarse) + ribs + noise, 0, 1)


def as_jpeg(film: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((film * 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def as_png(film: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((film * 65535).astype(np.uint16)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_dicom(film: np.ndarray, syntax: str | None, *, window: bool = True) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel = HEIGHT, WIDTH, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME1", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    if window:
        data.WindowCenter, data.WindowWidth = 2048, 3600
    data.PixelData = (film * 4095).astype(np.uint16).tobytes()
    if syntax:
        data.compress(syntax)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def ours(film: bytes) -> Image.Image:
    return load_film(View("film", data=film), size=SIZE, max_pixels=200_000_000)


def plain(film: bytes, mode: str) -> Image.Image:
    """What one writes without thinking of it: decode in full, then resize."""
    return resized(Image.open(io.BytesIO(film)).convert(mode))


def plain_png(film: bytes) -> Image.Image:
    return resized(Image.fromarray((np.asarray(Image.open(io.BytesIO(film))) / 65535 * 255).astype(np.uint8)))


def plain_dicom(film: bytes) -> Image.Image:
    """The usual loop over pydicom: pixel_array, its window, inverted for MONOCHROME1, 8 bits, resize."""
    data = pydicom.dcmread(io.BytesIO(film))
    shown = apply_voi_lut(data.pixel_array, data)
    shown = (shown - shown.min()) / (shown.max() - shown.min())
    return resized(Image.fromarray(((1 - shown) * 255).astype(np.uint8)))


def resized(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, round(SIZE * HEIGHT / WIDTH)), Image.Resampling.BICUBIC)


def off_a_full_decode(film: bytes) -> dict[str, float]:
    """Grey levels between a film read at SIZE and one read in full and then shrunk."""
    full = load_film(View("film", data=film), size=None, max_pixels=200_000_000)
    error = np.abs(np.asarray(ours(film), int) - np.asarray(shrink(full, SIZE), int))
    return {"mean": round(float(error.mean()), 3), "max": int(error.max())}


def measure(sides: dict[str, tuple[Callable[[bytes], Any], list[bytes]]], rounds: int) -> dict[str, dict[str, float]]:
    """Films a second of each side: the median round and the best, rounds taken in turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (decode, films) in sides.items():
            began = time.process_time()
            for film in films:
                decode(film)
            if number:  # the first round warms up
                rates[name].append(len(films) / (time.process_time() - began))
    return {name: {"median": float(np.median(r)), "best": max(r)} for name, r in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=8, help="JPEG films of each round; of slower kinds fewer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    drawn = [draw(seed) for seed in range(options.films)]
    few, one = drawn[:2], drawn[:1]
    jpeg, png = [as_jpeg(film) for film in drawn], [as_png(film) for film in few]
    dicom, rle = [as_dicom(film, None) for film in few], [as_dicom(film, RLELossless) for film in few]
    jpeg2000 = [as_dicom(film, JPEG2000Lossless) for film in few]
    unstated = [as_dicom(film, JPEG2000Lossless, window=False) for film in one]
    sides = {
        "megpt, JPEG": (ours, jpeg),
        "plain Pillow, JPEG, grey": (lambda film: plain(film, "L"), jpeg),
        "plain Pillow, JPEG, RGB": (lambda film: plain(film, "RGB"), jpeg),
        "megpt, 16-bit PNG": (ours, png),
        "plain Pillow, 16-bit PNG": (plain_png, png),
        "megpt, DICOM": (ours, dicom),
        "plain pydicom, DICOM": (plain_dicom, dicom),
        "megpt, DICOM, RLE": (ours, rle),
        "plain pydicom, DICOM, RLE": (plain_dicom, rle),
        "megpt, DICOM, JPEG 2000": (ours, jpeg2000),
        "plain pydicom, DICOM, JPEG 2000": (plain_dicom, jpeg2000[:1]),
        "megpt, DICOM, JPEG 2000 without a window": (ours, unstated),
    }
    rates = measure(sides, options.rounds)
    result = record("decode.py", "pillow", "numpy", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle") | {
        "cores_used": 1,
        "films": f"{WIDTH}×{HEIGHT} to a shorter side of {SIZE}",
        "jpeg_megabytes": round(sum(map(len, jpeg)) / len(jpeg) / 1e6, 2),
        "grey_levels_off_a_full_decode": {
            "JPEG": off_a_full_decode(jpeg[0]),
            "DICOM, JPEG 2000": off_a_full_decode(jpeg2000[0]),
        },
        "films_per_cpu_second": {
            name: {kind: round(rate, 2) for kind, rate in pair.items()} for name, pair in rates.items()
        },
        "target": TARGETS,
        "reached": {name: rates[name]["median"] >= target for name, target in TARGETS.items()},
    }
    save(result, options.out)


if __name__ == "__main__":
    main()
