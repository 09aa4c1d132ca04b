"""What is trained on, as one local memory-mapped file that gives any study at once.

    samples = open_samples(studies, folder=scratch, settings=SampleSettings(...), tokenize=...)
    samples.study(17), samples.labels(17), samples.num_tokens[17]

A studies/ table is compressed Parquet, which cannot give one row without decoding thousands; an archive has to be
walked. So each node writes the training split once to an uncompressed Arrow file on its own disk (the size of the
encoded films, nothing where films are linked), with the reports tokenized, and maps it into memory. Samples are
numbered by study id, so the order does not depend on how the table is cut into files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megpt.data.cleaning import clean
from megpt.errors import InputError
from megpt.output import write_aside
from megpt.progress import log
from megpt.study import FAILED_SCHEMA, STUDIES_SCHEMA, Study

Tokenize = Callable[[list[str]], list[list[int]]]
"""Texts → label ids of each: report tokens, then the end token unless the text was cut."""

SCHEMA = pa.schema([STUDIES_SCHEMA.field(name) for name in ("study_id", "subject_id", "views")]).append(
    pa.field("labels", pa.list_(pa.int32()))
)
BATCH = 256
MISSING_FILM, NO_TEXT = "film missing", "no text to learn"


@dataclass(frozen=True)
class SampleSettings:
    """How a study becomes a sample."""

    section: str
    cleaner: str
    max_views: int | None


class Samples:
    """The samples of a run, read-only and shared between the workers of a node by the page cache.

    Attributes:
        num_tokens: label tokens of each sample, (N,).
        num_views: films of each sample, (N,).
        left_out: reason → number of studies that are not samples.
        failed: rows of FAILED_SCHEMA, the studies left out because of their films.
        fingerprint: 16 hex digits that say which studies these are, and how many films and tokens each has.
    """

    def __init__(self, folder: Path):
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "samples.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        rows = np.asarray([(b, r) for b, batch in enumerate(self._batches) for r in range(batch.num_rows)], np.int64)
        table = pa.Table.from_batches(self._batches, SCHEMA)
        order = np.asarray(pc.sort_indices(table["study_id"]), np.int64)
        self._rows = rows.reshape(-1, 2)[order]
        self.num_tokens = np.asarray(pc.list_value_length(table["labels"]), np.int64)[order]
        self.num_views = np.asarray(pc.list_value_length(table["views"]), np.int64)[order]
        digest = hashlib.sha256("\n".join(table["study_id"].take(order).to_pylist()).encode())
        for numbers in (self.num_tokens, self.num_views):
            digest.update(numbers.tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.left_out: dict[str, int] = json.loads((folder / "left_out.json").read_text())
        self.failed = pq.read_table(folder / "failed.parquet").to_pylist()

    def __len__(self) -> int:
        return len(self._rows)

    def _cell(self, index: int, name: str) -> Any:
        batch, row = self._rows[index]
        return self._batches[batch].column(name)[int(row)]

    def study(self, index: int) -> Study:
        """The study without its text."""
        row = {name: self._cell(index, name).as_py() for name in ("study_id", "subject_id", "views")}
        return Study.from_row(row, split="train")

    def labels(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids to be learnt, (L,)."""
        return np.asarray(self._cell(index, "labels").values, np.int64)


def open_samples(
    studies: Callable[[], Iterable[Study]], *, folder: Path, settings: SampleSettings, tokenize: Tokenize
) -> Samples:
    """The samples in `folder`, written there first unless an earlier call did.

    One process of a node writes while the others wait for its lock; `left_out.json` comes last and marks it whole.

    Raises:
        InputError: no study can be trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        samples = _existing(folder)
        if samples is None:
            left_out, failed = _write(studies(), folder / "samples.arrow", settings, tokenize)
            with write_aside(folder / "failed.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(failed, FAILED_SCHEMA), temporary)
            with write_aside(folder / "left_out.json") as temporary:
                temporary.write_text(json.dumps(left_out))
            samples = Samples(folder)
        if not len(samples):
            (folder / "left_out.json").unlink()  # once that is mended, the next call shall look again
    if not len(samples):
        raise InputError(
            "no study can be trained on",
            where=", ".join(f"{n} × {reason}" for reason, n in samples.left_out.items()) or "no study is there",
            cause=f"training needs studies of the train split with a film and text in data.section={settings.section}",
            next="check `studies` or `source`, data.section and data.annotations",
        )
    return samples


def _existing(folder: Path) -> Samples | None:
    """The samples of an earlier call; None where there are none, or where their file was damaged since."""
    if not (folder / "left_out.json").exists():
        return None
    try:
        return Samples(folder)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own are of these
        log(f"warning: the sample file in {folder} is damaged ({type(error).__name__}) and is written again")
        return None


def _write(
    studies: Iterable[Study], path: Path, settings: SampleSettings, tokenize: Tokenize
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    left_out: dict[str, int] = {}
    failed: list[dict[str, Any]] = []
    stream = iter(studies)
    with (
        write_aside(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        ThreadPoolExecutor(16) as pool,  # asking a shared file system whether a film is there takes time, not work
    ):
        while group := list(islice(stream, BATCH)):
            kept = []
            for study, has_film in zip(group, pool.map(_has_film, group), strict=True):
                text = clean(getattr(study, settings.section) or "", settings.cleaner).strip()
                if text and has_film:
                    kept.append((study, text))
                    continue
                reason = MISSING_FILM if text else NO_TEXT
                left_out[reason] = left_out.get(reason, 0) + 1
                if text:
                    failed.append({**study.to_row(), "split": study.split, "error": reason})
            if kept:
                writer.write_batch(_record_batch(kept, tokenize, settings.max_views))
    return left_out, failed


def _record_batch(kept: list[tuple[Study, str]], tokenize: Tokenize, max_views: int | None) -> pa.RecordBatch:
    labels = tokenize([text for _, text in kept])
    rows = [
        {
            "study_id": study.study_id,
            "subject_id": study.subject_id,
            "views": study.to_row()["views"][:max_views],
            "labels": ids,
        }
        for (study, _), ids in zip(kept, labels, strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _has_film(study: Study) -> bool:
    return any(view.data or (view.uri and Path(view.uri).exists()) for view in study.views)


def tokenizer_for(tokenizer: Any, max_tokens: int) -> Tokenize:
    """Report text → at most `max_tokens` ids, and the end token only where nothing was cut off."""

    def tokenize(texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id]
        return [ids + end if len(ids) <= max_tokens else ids[:max_tokens] for ids in encoded]

    return tokenize
