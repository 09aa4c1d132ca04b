"""Films a second on one core: megpt's decoding beside plain Pillow, in one run, taking turns.

    OMP_NUM_THREADS=1 python benchmarks/decode.py --out benchmarks/results/decode-DATE.json

The films are drawn: 2500×3000 grey with film-like noise, as JPEG (quality 95, about the 1.5 MB that MIMIC-CXR-JPG's
films have on average), 12-bit DICOM (uncompressed, JPEG 2000, RLE) and 16-bit PNG; wanted is a shorter side of 224.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from megpt.films.decode import load_film
from megpt.study import View

HEIGHT, WIDTH, SIZE = 3000, 2500, 224
TARGET = 35.0


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


def as_dicom(film: np.ndarray, syntax: str | None) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel = HEIGHT, WIDTH, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME1", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
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
    return (
        Image.open(io.BytesIO(film))
        .convert(mode)
        .resize((SIZE, round(SIZE * HEIGHT / WIDTH)), Image.Resampling.BICUBIC)
    )


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


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=8, help="films of each kind and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    drawn = [draw(seed) for seed in range(options.films)]
    jpeg = [as_jpeg(film) for film in drawn]
    few = drawn[:2]
    sides = {
        "megpt, JPEG": (ours, jpeg),
        "plain Pillow, JPEG, grey": (lambda film: plain(film, "L"), jpeg),
        "plain Pillow, JPEG, RGB": (lambda film: plain(film, "RGB"), jpeg),
        "megpt, 16-bit PNG": (ours, [as_png(film) for film in few]),
        "megpt, DICOM": (ours, [as_dicom(film, None) for film in few]),
        "megpt, DICOM, RLE": (ours, [as_dicom(film, RLELossless) for film in few]),
        "megpt, DICOM, JPEG 2000": (ours, [as_dicom(film, JPEG2000Lossless) for film in few[:1]]),
    }
    error = np.abs(np.asarray(ours(jpeg[0]), int) - np.asarray(plain(jpeg[0], "L"), int))
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
        "hardware": f"{cpu()}, one core",
        "versions": {name: version(name) for name in ("pillow", "numpy", "pydicom", "pylibjpeg-openjpeg")},
        "films": f"{WIDTH}×{HEIGHT} to a shorter side of {SIZE}",
        "jpeg_megabytes": round(sum(map(len, jpeg)) / len(jpeg) / 1e6, 2),
        "grey_levels_off_a_full_decode": {"mean": round(float(error.mean()), 3), "max": int(error.max())},
        "films_per_cpu_second": {
            name: {kind: round(rate, 2) for kind, rate in rates.items()}
            for name, rates in measure(sides, options.rounds).items()
        },
        "target": {"megpt, JPEG": TARGET},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
