"""The training split that a config means, what identifies it, and where a node keeps its sample file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from megpt.config import Config
from megpt.data.sources import open_source
from megpt.data.studies import fingerprint, read_studies
from megpt.study import Study


def training_studies(config: Config) -> Iterator[Study]:
    """The training split of the studies/ table, or else of the archive itself."""
    if config.studies:
        return read_studies(config.studies, "train", limit=config.limit)
    source = open_source(str(config.source), data=config.data)
    return islice((study for study in source.studies() if study.split == "train"), config.limit)


def input_fingerprint(config: Config) -> str:
    """What a change of the training input changes."""
    if config.studies:
        return fingerprint(config.studies)
    path = Path(str(config.source)).absolute()
    annotations = [Path(p) for p in (config.data.annotations, config.data.reports) if p]
    stamps = [f"{p}:{_stamp(p)}" for p in (path, *annotations)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def weights_fingerprint(name: str) -> str | None:
    """A hash over the files of a local model or of one weights file; None for a hub id, or a word as `none`."""
    path = Path(name)
    if not path.exists():
        return None
    kinds = ("*.safetensors", "config.json", "tokenizer.json")
    files = sorted(f for kind in kinds for f in path.glob(kind)) if path.is_dir() else [path]

    def digest(file: Path) -> str:
        with file.open("rb") as opened:
            return f"{file.name}:{hashlib.file_digest(opened, 'sha256').hexdigest()}"

    with ThreadPoolExecutor(4) as pool:  # a language model is a few files of gigabytes
        return hashlib.sha256("\n".join(pool.map(digest, files)).encode()).hexdigest()[:16]


def sample_folder(config: Config) -> Path:
    """Where this node keeps the sample file of a run: on its own disk, under a name that its content decides."""
    key = json.dumps(
        [
            input_fingerprint(config),
            str(config.output),
            config.limit,
            config.data.model_dump(mode="json"),
            config.model.llm,
            _stamp(Path(config.model.llm) / "tokenizer.json"),
            config.train.max_report_tokens,
        ]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"megpt-{os.getuid()}" / name


def drop_samples(config: Config) -> None:
    """Delete this node's sample file; a run that is done needs it no more."""
    shutil.rmtree(sample_folder(config), ignore_errors=True)
