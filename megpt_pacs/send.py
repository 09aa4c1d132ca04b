"""predictions/ → PACS: each report once, as a DICOM Basic Text SR that says what it is.

    megpt send predictions=/data/reports to=dicomweb://pacs:8042/dicom-web                    # says what it would do
    megpt send predictions=/data/reports to=dicomweb://pacs:8042/dicom-web send.store=true

A study's row becomes one document (report.py) in a series of its own. The patient's data are read from the PACS, from
the headers of the very films, when the document is made, and kept nowhere: OUT has a ledger of UIDs (ledger.py).

Why a kill at any moment is safe: a report's UID follows from its study and its model, and the PACS is asked whether it
has that UID before anything is stored. The ledger only spares the question. OUT is `PREDICTIONS/sent` unless it is set.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from megpt.config import Config
from megpt.data.parquet import read_rows
from megpt.errors import InputError, TooManyFailed
from megpt.generation.predictions import REPORTS
from megpt.output import RECORD, SUCCESS, reopen, write_json
from megpt.progress import Progress, log
from megpt_pacs.address import checked
from megpt_pacs.client import Pacs, PacsError, dataset_of, extra, text_of, unusable
from megpt_pacs.ledger import LEDGER, Ledger
from megpt_pacs.settings import SendOptions
from ray_jobs.job import Job

RUN_JSON = "run.json"
PACKAGES = ("megpt", "dicomweb-client", "highdicom", "pydicom")
NAMED = 10
COLUMNS = ["study_id", "image_ids", "report", "error", "model"]
# A number of digits alone is an accession number.
_UID = re.compile(r"(?=.{3,64}$)[0-2](\.\d+)+")


class Send(Job):
    """predictions/ → PACS: each report once, as a DICOM Basic Text SR; it only says so without send.store=true"""

    name = "send"
    reads = ("predictions", "limit")
    needs = ("predictions",)
    grows = True
    settings = SendOptions
    options: SendOptions

    @classmethod
    def run(cls, config: Config, *arguments: str, dry_run: bool = False) -> int:
        """As every job; without `send.store` it is a dry run."""
        config.require("predictions")
        if config.output is None:
            config = config.updated(output=str(Path(str(config.predictions)) / "sent"))
        return super().run(config, *arguments, dry_run=dry_run or not cls(config).options.store)

    def open(self) -> None:
        if self.options.to is None:
            raise InputError("`to` is not set", cause="it names the PACS", next="add to=dicomweb://HOST[:PORT]/PATH")
        self.to = checked(self.options.to, key="to")
        self.folder = Path(str(self.config.predictions)).absolute()
        _check_predictions(self.folder)
        extra("highdicom")
        self.pacs = Pacs(self.to)
        try:
            next(self.pacs.studies({}, page=1), None)
        except PacsError as error:
            raise unusable(error, self.to) from None

    def identity(self) -> dict[str, Any]:
        # What the predictions hold may grow, and any number of them may be sent at a time.
        return {"predictions": str(self.folder), "to": self.to}

    def demand(self) -> None:
        return None

    def preview(self, folder: Path) -> None:
        ledger, counts = Ledger(folder), Counter[str]()
        for row in self._rows():
            counts["error" if row["error"] is not None else "done" if ledger.is_done(_instance(row)) else "new"] += 1
        done = f"; {counts['done']} are there already" if counts["done"] else ""
        skipped = f"; {counts['error']} studies have an error in place of a report" if counts["error"] else ""
        log(f"send: would store {counts['new']} reports as DICOM Basic Text SR in {self.to}{done}{skipped}")
        if not self.options.store:
            log("send: nothing was sent; send.store=true sends")

    def has_grown(self, folder: Path) -> bool:
        return next(self._left(Ledger(folder)), None) is not None

    def plan(self, folder: Path) -> bool:
        self.ledger = Ledger(folder)
        if left := next(self._left(self.ledger), None) is not None:
            reopen(folder)
        return left

    def work(self, folder: Path) -> None:
        total = sum(1 for _ in self._left(self.ledger))
        with Progress("send", total, unit="reports") as progress:
            for row in self._left(self.ledger):
                state, reason = self._send(row)
                self.ledger.add(row["study_id"], _instance(row), state, reason)
                progress.advance(1, int(state == "failed"))

    def finish(self, folder: Path) -> dict[str, Any]:
        counts = self.ledger.counts()
        counts["skipped"] = sum(row["error"] is not None for row in self._rows())
        tree = {
            "job": "send",
            "to": self.to,
            "counts": counts,
            "seconds": round(time.monotonic() - self.began, 3),
            "versions": {name: version(name) for name in PACKAGES},
        }
        write_json(folder / RUN_JSON, tree)
        return counts

    def kept(self, folder: Path) -> bool:
        return (folder / LEDGER).exists()

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        skipped = f", {summary['skipped']} studies without a report skipped" if summary["skipped"] else ""
        log(
            f"send: {summary['stored']} reports stored in {self.to}, {summary['found']} were there already, "
            f"{summary['failed']} failed{skipped}"
        )

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        if not summary["failed"]:
            return
        failed = Ledger(folder).failed()
        for study, reason in failed[:NAMED]:
            log(f"send: {study}: {reason}")
        (reason, times), *_ = Counter(reason for _, reason in failed).most_common(1)
        raise TooManyFailed(
            f"{len(failed)} reports were not stored",
            where=str(folder / LEDGER),
            cause=f"most often: {reason} ({times})",
            next="run the same command again: it sends these, and what is new",
        )

    # ---- one report

    def _send(self, row: dict[str, Any]) -> tuple[str, str]:
        """What became of it, and why it failed."""
        from megpt_pacs.report import text_report

        study = row["study_id"]
        if not _UID.fullmatch(study):
            return "failed", "its study id is not a StudyInstanceUID"
        if not (row["report"] or "").strip() or not row["image_ids"]:
            return "failed", "its row has no text" if row["image_ids"] else "its row names no film"
        try:
            if self.pacs.find(study, _instance(row)):
                return "found", ""
            films = [self._film(study, name) for name in row["image_ids"]]
            try:
                document = text_report(row["report"], films, model=row["model"])
            except Exception as error:  # highdicom and pydicom raise anything on odd headers, and quote them
                return "failed", f"no document can be made of its films' headers ({type(error).__name__})"
            self.pacs.store(document)
        except PacsError as error:
            return "failed", error.reason
        return "stored", ""

    def _film(self, study: str, name: str) -> Any:
        """The header of a film, without pixels and private tags."""
        entry = self.pacs.find(study, name)
        if entry is None:
            raise PacsError("a film that it was written from is not in the PACS")
        (header, *_) = self.pacs.metadata(study, text_of(entry, "0020000E"), name) or [{}]
        film = dataset_of(header, [tag for tag in header if tag < "0054" and int(tag[:4], 16) % 2 == 0])
        if any(word not in film for word in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")):
            raise PacsError("the PACS gives a film's header without its UIDs")
        if film.get("StudyInstanceUID") != study or film.SOPInstanceUID != name:
            raise PacsError("the PACS gives another film's header")
        return film

    def _rows(self) -> Iterator[dict[str, Any]]:
        rows = (row for file in sorted((self.folder / REPORTS).glob("*.parquet")) for row in read_rows(file, COLUMNS))
        return islice(rows, self.config.limit)

    def _left(self, ledger: Ledger) -> Iterator[dict[str, Any]]:
        return (row for row in self._rows() if row["error"] is None and not ledger.is_done(_instance(row)))


def _instance(row: dict[str, Any]) -> str:
    from megpt_pacs.report import report_uid

    return report_uid(row["study_id"], row["model"])


def _check_predictions(folder: Path) -> None:
    """Refuse what is not a finished output of `generate` whose ids are StudyInstanceUIDs."""
    record = _record(folder)
    if record is None or record.get("job") != "generate" or not (folder / SUCCESS).exists():
        unfinished = record is not None and record.get("job") == "generate"
        raise InputError(
            f"{folder} is not a finished output of `megpt generate`",
            cause="the job has not ended, or takes up new studies now" if unfinished else f"it has no {RECORD} of it",
            next="run the same `megpt generate` again: it resumes" if unfinished else "set predictions=PATH to one",
        )
    kind = _id_kind(record)
    if kind != "uid":
        raise InputError(
            f"the study ids of {folder} are not StudyInstanceUIDs, so nothing says where a report belongs",
            where=f"data.study_id={kind}",
            cause=f"{'hashes' if kind == 'hash' else 'accession numbers'} were chosen in place of UIDs",
            next="run `megpt generate` (and `prepare`) with data.study_id=uid and another output=PATH",
        )
    files = sorted((folder / REPORTS).glob("*.parquet"))
    ids = [row["study_id"] for file in files for row in islice(read_rows(file, ["study_id"]), 100)]
    if ids and not any(map(_UID.fullmatch, ids)):
        raise InputError(
            f"the study ids of {folder} are not StudyInstanceUIDs, so nothing says where a report belongs",
            cause="the films come from an archive that is not DICOM, whose ids are its own",
            next="generate from the PACS (source=dicomweb://…) or from DICOM files, with data.study_id=uid",
        )


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return record if isinstance(record, dict) else None


def _id_kind(record: dict[str, Any]) -> str:
    """`data.study_id` of the job that read the archive: that of `prepare` where `generate` read its table."""
    try:
        source = record["identity"]["source"]
        table = _record(Path(source["path"])) if source["format"] == "table" else None
        return _id_kind(table) if table is not None else str(record["config"]["data"]["study_id"])
    except (KeyError, TypeError):
        return "uid"
