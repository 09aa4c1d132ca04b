"""Seconds and memory until `prepare` and `generate` have listed the studies of an archive of MIMIC-CXR's size.

    python benchmarks/plan.py --out benchmarks/results/plan-DATE.json

Draws the tables and the zip of reports of a MIMIC-CXR-JPG archive (227,835 studies of 65,379 patients, 377,110 films,
but without the films, because a shard list opens none), and a studies/ table of the same studies. Each list is made in
a process of its own; the highest resident memory is that of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import record, save

from megpt.config import load_config
from megpt.data.prepare import list_shards
from megpt.data.sources import open_source
from megpt.data.studies import write_studies
from megpt.generation.predictions import Predictions
from megpt.study import CHEXPERT

STUDIES, FILMS, PATIENTS = 227_835, 377_110, 65_379
TARGET = {"seconds": 60, "peak_mib": 2048}
PLANS = {
    "prepare, archive": ("prepare", "archive"),
    "generate, archive": ("generate", "archive"),
    "generate, studies/ table": ("generate", "studies"),
    "generate, studies/ table, shards of 8": ("generate", "studies"),
}
METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)
SENTENCES = (
    "The cardiac silhouette is mildly enlarged, unchanged from the prior examination.",
    "There is no focal consolidation, pleural effusion or pneumothorax.",
    "A left-sided pacemaker ends in the right ventricle.",
    "Low lung volumes accentuate the bronchovascular markings.",
    "Bibasilar opacities most likely represent atelectasis.",
    "The mediastinal and hilar contours are within normal limits.",
)


def drawn(studies: int) -> Iterator[tuple[str, str, str, list[str]]]:
    """(subject, study, split, films) in the order of PhysioNet's tables: by patient."""
    chance = random.Random(0)
    patients, films = round(studies * PATIENTS / STUDIES), FILMS / STUDIES
    for number in range(studies):
        subject = 10_000_032 + (number * patients // studies) * 152
        split = "validate" if number % 126 == 0 else "test" if number % 70 == 0 else "train"
        count = int(films) + (chance.random() < films % 1)
        names = ["-".join(f"{chance.getrandbits(32):08x}" for _ in range(5)) for _ in range(count)]
        yield str(subject), str(50_000_014 + number * 43), split, names


def draw_archive(folder: Path, studies: int) -> None:
    """The tables and the reports, as PhysioNet ships them."""
    folder.mkdir()
    chance = random.Random(1)

    with contextlib.ExitStack() as stack:

        def table(kind: str, *columns: str) -> Any:
            path = folder / f"mimic-cxr-2.0.0-{kind}.csv.gz"
            writer = csv.writer(stack.enter_context(gzip.open(path, "wt", compresslevel=3, newline="")))
            writer.writerow(columns)
            return writer

        metadata = table("metadata", *METADATA)
        splits = table("split", "dicom_id", "study_id", "subject_id", "split")
        chexpert = table("chexpert", "subject_id", "study_id", *CHEXPERT)
        reports = stack.enter_context(zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED))
        for subject, study, split, films in drawn(studies):
            for film in films:
                view = chance.choice(("PA", "AP", "LATERAL", "LL", ""))
                row = (film, subject, study, "CHEST (PA AND LAT)", view, 3056, 2544, 21800506, "213014.531")
                metadata.writerow((*row, "CHEST (PA AND LAT)", "postero-anterior", "Erect"))
                splits.writerow((film, study, subject, split))
            labels = [chance.choice(("1.0", "0.0", "-1.0", "", "", "", "")) for _ in CHEXPERT]
            chexpert.writerow((subject, study, *labels))
            findings, impression = (" ".join(chance.choices(SENTENCES, k=k)) for k in (5, 2))
            text = f" FINAL REPORT\n EXAMINATION: CHEST (PA AND LAT)\n\n FINDINGS:\n\n {findings}\n\n"
            name = f"files/p{subject[:2]}/p{subject}/s{study}.txt"
            reports.writestr(name, f"{text} IMPRESSION:\n\n {impression}\n")


def draw_table(folder: Path, archive: Path) -> None:
    """A studies/ table of the same studies, its films by `uri`, a file per 500 studies as `prepare` writes them."""
    data = load_config(None, []).data
    parts: dict[str, int] = {}
    waiting: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def flush(split: str, least: int) -> None:
        if len(waiting[split]) >= least:
            write_studies(folder, split, waiting[split], parts.get(split, 0))
            parts[split], waiting[split] = parts.get(split, 0) + 1, []

    for study in open_source(archive, data=data).studies():
        waiting[study.split].append(study)
        flush(study.split, 500)
    for split in waiting:
        flush(split, 1)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One shard list, made in this process."""
    job, kind = PLANS[name]
    config = load_config(None, [])
    began = time.monotonic()
    source = open_source(folder / kind, data=config.data)
    source.fingerprint()
    with tempfile.TemporaryDirectory(dir=folder) as output:
        if job == "prepare":
            shards = list_shards(
                Path(output) / "plan",
                source.listed(),
                shard_size=config.prepare.shard_size,
                seed=config.seed,
                source=source,
            )
        else:
            size = 8 if "shards of 8" in name else config.generate.shard_size
            shards = Predictions.create(Path(output), source, split="all", shard_size=size).shards
        seconds = time.monotonic() - began
        files = [path for path in Path(output).rglob("*") if path.is_file()]
        return {
            "studies": shards.studies,
            "seconds": round(seconds, 1),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "files": len(files),
            "plan_mib": round(sum(path.stat().st_size for path in files) / 2**20, 1),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--folder", type=Path, help="where an archive is drawn, or was by an earlier run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=list(PLANS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        if not (folder / "studies").exists():
            folder.mkdir(parents=True, exist_ok=True)
            draw_archive(folder / "archive", options.studies)
            draw_table(folder / "studies", folder / "archive")
        plans = {}
        for name in PLANS:
            command = [sys.executable, __file__, "--measure", name, "--folder", str(folder)]
            plans[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(name, plans[name], file=sys.stderr, flush=True)
    result = record("plan.py", "pyarrow", "numpy") | {"plans": plans, "target": TARGET}
    save(result, options.out)
    return int(any(plan[key] > most for plan in plans.values() for key, most in TARGET.items()))


if __name__ == "__main__":
    sys.exit(main())
