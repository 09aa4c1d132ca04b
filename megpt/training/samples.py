"""The studies to train on, as one local memory-mapped file that yields any of them at once.

    samples = open_samples(lambda: training_studies(config), folder=sample_folder(config), data=config.data, tokenize=…)
    samples.study(17), samples.labels(17), samples.num_tokens[17]

A studies/ table is compressed Parquet: reading one row means decoding thousands, and an archive has to be walked. So
each node writes the training split once to an uncompressed Arrow file on its own disk (the size of the encoded films,
or nothing where films are linked), with the reports tokenized, and maps it into memory. Samples are numbered by study
id, so the order does not depend on how the table is cut into files.

A step's samples are numbers in that list. A node that sees another part of the archive, or an archive that has changed
since the last start, would silently train on other studies: `sameness.py` refuses that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megpt.config import Config, DataConfig
from megpt.data.cleaning import clean
from megpt.data.sources import open_source
from megpt.data.studies import fingerprint, read_studies
from megpt.errors import InputError
from megpt.output import write_aside
from megpt.places import exists, place
from megpt.places.whole import private_folder
from megpt.progress import log
from megpt.study import FAILED_SCHEMA, STUDIES_SCHEMA, Study

Tokenize = Callable[[list[str]], list[list[int]]]
"""Texts → label ids of each: report tokens, then the end token unless the text was cut."""

SCHEMA = pa.schema(
    [
        *(STUDIES_SCHEMA.field(name) for name in ("study_id", "subject_id", "views")),
        ("labels", pa.list_(pa.int32())),
        ("context", pa.list_(pa.int32())),
    ]
)
BATCH = 256
MISSING_FILM, NO_TEXT = "film missing", "no text to learn"


class Samples:
    """The samples of a run, read-only and shared between the workers of a node by the page cache.

    Attributes:
        ids: study ids of the samples, in order. num_tokens: label tokens of each, (N,).
        num_views: films of each sample, (N,).
        left_out: reason → number of studies that are not samples.
        failed: rows of FAILED_SCHEMA without `source`, the studies left out because of their films.
        fingerprint: 16 hex digits that depend on which studies these are, and how many films and tokens each has.
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
        self.ids: list[str] = table["study_id"].take(order).to_pylist()
        digest = hashlib.sha256("\n".join(self.ids).encode())
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
        """Token ids to learn, (L,)."""
        return np.asarray(self._cell(index, "labels").values, np.int64)

    def context(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of what is known of the study, (C,)."""
        return np.asarray(self._cell(index, "context").values, np.int64)


def open_samples(
    studies: Callable[[], Iterable[Study]],
    *,
    folder: Path,
    data: DataConfig,
    tokenize: Tokenize,
    context: Callable[[Study], list[int]] = lambda study: [],
) -> Samples:
    """The samples in `folder`; the first call on a node writes them.

    One process of a node writes while the others wait for its lock; `left_out.json` comes last and marks the whole.

    Raises:
        InputError: no study can be trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        samples = _existing(folder)
        if samples is None:
            left_out, failed = _write(studies(), folder / "samples.arrow", data, tokenize, context)
            with write_aside(folder / "failed.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(failed, FAILED_SCHEMA), temporary)
            with write_aside(folder / "left_out.json") as temporary:
                temporary.write_text(json.dumps(left_out))
            samples = Samples(folder)
        if not len(samples):
            (folder / "left_out.json").unlink()  # so that the next call reads the repaired input
    if not len(samples):
        raise InputError(
            "no study can be trained on",
            where=", ".join(f"{n} × {reason}" for reason, n in samples.left_out.items()) or "the split has no studies",
            cause=f"training needs studies of the train split with a film and text in data.section={data.section}",
            next="check `studies` or `source`, data.section and data.annotations",
        )
    return samples


def _existing(folder: Path) -> Samples | None:
    """The samples of an earlier call; None if there are none, or if their file has been damaged since."""
    if not (folder / "left_out.json").exists():
        return None
    try:
        return Samples(folder)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are subclasses of these
        log(f"warning: the sample file in {folder} is damaged ({type(error).__name__}); writing it again")
        return None


def _write(
    studies: Iterable[Study],
    path: Path,
    data: DataConfig,
    tokenize: Tokenize,
    context: Callable[[Study], list[int]],
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    left_out: dict[str, int] = {}
    failed: list[dict[str, Any]] = []
    stream = iter(studies)
    with (
        write_aside(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        ThreadPoolExecutor(16) as pool,  # checking that a film exists waits on a shared file system, not on the CPU
    ):
        while group := list(islice(stream, BATCH)):
            kept = []
            for study, has_film in zip(group, pool.map(_has_film, group), strict=True):
                text = clean(getattr(study, data.section) or "", data.cleaner).strip()
                if text and has_film:
                    kept.append((study, text))
                    continue
                reason = MISSING_FILM if text else NO_TEXT
                left_out[reason] = left_out.get(reason, 0) + 1
                if text:
                    failed.append(study.failed_row(reason))
            if kept:
                writer.write_batch(_record_batch(kept, tokenize, data.max_views, context))
    return left_out, failed


def _record_batch(
    kept: list[tuple[Study, str]], tokenize: Tokenize, max_views: int | None, context: Callable[[Study], list[int]]
) -> pa.RecordBatch:
    labels = tokenize([text for _, text in kept])
    rows = [
        {
            "study_id": study.study_id,
            "subject_id": study.subject_id,
            "views": study.to_row()["views"][:max_views],
            "labels": ids,
            "context": context(study),
        }
        for (study, _), ids in zip(kept, labels, strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _has_film(study: Study) -> bool:
    return any(view.data or (view.uri and exists(view.uri)) for view in study.views)


def tokenizer_for(tokenizer: Any, max_tokens: int) -> Tokenize:
    """Report text → at most `max_tokens` ids, and the end token only where nothing was cut off."""

    def tokenize(texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id]
        return [ids + end if len(ids) <= max_tokens else ids[:max_tokens] for ids in encoded]

    return tokenize


def training_origin(config: Config) -> tuple[str, str]:
    """Path and format of what `training_studies` reads."""
    return open_source(str(config.studies or config.source), data=config.data).origin


def training_studies(config: Config) -> Iterator[Study]:
    """The training split of the studies/ table, or else of the archive itself."""
    if config.studies:
        return read_studies(config.studies, "train", limit=config.limit)
    source = open_source(str(config.source), data=config.data)
    return islice((study for study in source.studies() if study.split == "train"), config.limit)


def input_fingerprint(config: Config) -> str:
    """A hash that changes when the training input does."""
    if config.studies:
        return fingerprint(config.studies)
    path = place(str(config.source)).absolute()
    annotations = [place(p) for p in (config.data.annotations, config.data.reports) if p]
    stamps = [f"{p}:{_stamp(p)}" for p in (path, *annotations)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def weights_fingerprint(name: str) -> str | None:
    """A hash over the files of a local model or of one weights file; None for a hub id, or a word such as `none`."""
    path = Path(name)
    if not path.exists():
        return None
    patterns = ("*.safetensors", "config.json", "tokenizer.json")
    files = sorted(f for pattern in patterns for f in path.glob(pattern)) if path.is_dir() else [path]

    def digest(file: Path) -> str:
        with file.open("rb") as opened:
            return f"{file.name}:{hashlib.file_digest(opened, 'sha256').hexdigest()}"

    with ThreadPoolExecutor(4) as pool:  # a language model is a few files of gigabytes
        return hashlib.sha256("\n".join(pool.map(digest, files)).encode()).hexdigest()[:16]


def sample_folder(config: Config) -> Path:
    """Where this node keeps the sample file of a run: on its own disk, under a name that depends on its content."""
    key = json.dumps(
        [
            input_fingerprint(config),
            str(config.output),
            config.limit,
            config.data.model_dump(mode="json"),
            config.model.llm,
            [config.model.context, config.model.context_tokens],
            _stamp(Path(config.model.llm) / "tokenizer.json"),
            config.train.max_report_tokens,
        ]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return private_folder(name)


def drop_samples(config: Config) -> None:
    """Delete this node's sample file; a finished run does not need it."""
    shutil.rmtree(sample_folder(config), ignore_errors=True)
