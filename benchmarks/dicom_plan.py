"""Planning a DICOM archive: headers a second, and what the next day costs.

    python benchmarks/dicom_plan.py --out benchmarks/results/dicom_plan-DATE.json

- 2,000 made-up studies from five exports of different shapes (tests/dicom_exports.py), then 200 more: each study must
  come out once, with its views. `share` is the second plan's time beside the first one's; the 200 are a tenth of the
  headers, so a tenth is the least that it can be, and what is above it is the walk and the list of all 2,200.
- 5,000 films of 100 KB in ten folders: headers a second of a first plan, of two cores. Target: 100,000 in 4 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record, save

from megpt.config import DataConfig
from megpt.data.sources import open_source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dicom_exports import film, write_exports
from make_films import encoded

PER_SECOND = 100_000 / 240


def plan(archive: Path, out: Path) -> tuple[dict[str, list[str]], float]:
    """The views of each study, and the seconds it took to list them."""
    out.mkdir(exist_ok=True)
    source = open_source(archive, data=DataConfig())
    source.keep_in(out)
    began = time.perf_counter()
    studies = {study.study_id: [view.position for view in study.views] for study in source.studies()}
    return studies, time.perf_counter() - began


def days(folder: Path, first: int, more: int) -> dict[str, Any]:
    """A first plan of `first` studies, and the next one with `more` of them."""
    expected = write_exports(folder / "in", first)
    studies, seconds = plan(folder / "in", folder / "out")
    right = studies == {uid: views for uid, views in expected.items() if views}
    expected |= write_exports(folder / "in", more, first=first, name="-next-day")
    studies, later = plan(folder / "in", folder / "out")
    right = right and studies == {uid: views for uid, views in expected.items() if views}
    return {
        "studies": first,
        "seconds": round(seconds, 3),
        "next_day_studies": more,
        "next_day_seconds": round(later, 3),
        "share": round(later / seconds, 3),
        "all_right": right,
    }


def headers(folder: Path, count: int) -> dict[str, Any]:
    """Headers a second of a first plan."""
    filler = bytes(100_000)
    for number in range(count):
        path = folder / "in" / f"day{number % 10}" / f"IM{number:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = film(f"1.2.3.{number // 2}", number, ViewPosition="PA", BodyPartExamined="CHEST")
        path.write_bytes(encoded(data) + filler)
    studies, seconds = plan(folder / "in", folder / "out")
    assert len(studies) == count // 2
    return {"films": count, "seconds": round(seconds, 3), "headers_per_second": round(count / seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000)
    parser.add_argument("--more", type=int, default=200)
    parser.add_argument("--films", type=int, default=5_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "days": days(Path(scratch) / "days", args.studies, args.more),
            "headers": headers(Path(scratch) / "headers", args.films),
        }
    targets = {"all_right": True, "headers_per_second": round(PER_SECOND, 1)}
    save(record("dicom_plan.py", "pydicom") | result | {"targets": targets}, args.out)
    return int(not (result["days"]["all_right"] and result["headers"]["headers_per_second"] > PER_SECOND))


if __name__ == "__main__":
    sys.exit(main())
