"""The folder of resumable checkpoints: OUT/steps/step-00000120/.

    store = CheckpointStore(output / "steps", keep=2)
    found = store.newest()                          # None, or the newest whole checkpoint
    store.save(tensors, meta)                       # returns at once; a thread writes
    store.close()                                   # the last one is on disk
    export(model, processor, store, output, …)      # the Hugging Face folder at the end of a run

At an address, without renames, the manifest is put last; to be read, a checkpoint is fetched (megpt/places/cache.py).

A checkpoint is a folder with `state.safetensors`, `meta.json` and, written last, `manifest.json`: the size and
SHA-256 of the other two. It is made under a hidden name and renamed when all three are synced, so at any moment a
reader finds whole checkpoints only; one that was cut short afterwards (a copy that failed, a damaged disk) fails its
manifest and is skipped with a warning. Older ones are deleted only after a newer one has its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megpt.output import remove_tree, storage_error, sync_folder, write_aside, write_text
from megpt.places import here, is_address
from megpt.places.whole import follow_umask, put_tree
from megpt.progress import log
from megpt.study import FAILED_SCHEMA
from megpt.training.samples import Samples

MASTER, BUFFER = "master", "buffer"
"""A tensor's key is one of these, or a moment of Adam, a slash, and the parameter's name."""
FAILED = "failed.parquet"
STATE, META, MANIFEST, BEST = "state.safetensors", "meta.json", "manifest.json", "best.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.meta["step"])

    def tensors(self) -> dict[str, Tensor]:
        """The trainable state, on the CPU."""
        return load_file(here(self.path) / STATE)


class CheckpointStore:
    """Writes, finds and prunes checkpoints. One process writes; any may read.

    Args:
        keep: how many of the newest stay, besides the best one.
        warn: called with a line about each checkpoint that is skipped.
    """

    def __init__(self, folder: Path, *, keep: int, warn: Callable[[str], None] = log):
        self.folder, self.keep, self._warn = folder, keep, warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self.before: Callable[[], None] = lambda: None
        """Called before a checkpoint is put at an address."""

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Hand a checkpoint to the writing thread. Waits for the previous one first, and raises its error.

        Args:
            tensors: must not be changed afterwards.
            meta: JSON; needs `step`.
        """
        self.wait()
        self._running = self._writer.submit(self._write, tensors, meta)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk. Raises MegptError when it could not be written."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Finish writing and stop the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are skipped with a warning."""
        for path in reversed(self._folders()):
            if checkpoint := self._check(path):
                return checkpoint
        return None

    def at(self, path: Path) -> Checkpoint:
        """The checkpoint in a folder that another process has found whole."""
        return Checkpoint(path, json.loads((path / META).read_text(encoding="utf-8")))

    def best(self) -> tuple[Checkpoint, float] | None:
        """The checkpoint with the best validation score, and that score."""
        pinned = self._pinned()
        checkpoint = self._check(pinned[0]) if pinned else None
        return (checkpoint, pinned[1]) if pinned and checkpoint else None

    def note_score(self, step: int, score: float) -> bool:
        """Pin the checkpoint of `step` as the best one if it is; an equal score leaves the earlier one."""
        self.wait()
        pinned = self._pinned()
        if pinned and pinned[1] >= score and pinned[0].name != _name(step):
            return False
        entry = json.dumps({"name": _name(step), "score": score, "step": step})
        with write_aside(self.folder / BEST) as temporary:
            temporary.write_text(entry + "\n", encoding="utf-8")
        return True

    def _pinned(self) -> tuple[Path, float] | None:
        try:
            entry = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            return self.folder / entry["name"], float(entry["score"])
        except (OSError, ValueError, KeyError):
            return None

    def _write(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        path = self.folder / _name(int(meta["step"]))
        if is_address(path):
            self._put(path, tensors, meta)
            self._prune()
            return
        aside = self.folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(tensors, aside / STATE)
            follow_umask(aside)
            (aside / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            manifest = {name: _digest(aside / name) for name in (STATE, META)}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for name in (STATE, META, MANIFEST):
                _sync(aside / name)
            sync_folder(aside)
            if path.exists():  # a damaged one, or the same step again
                shutil.rmtree(path)
            aside.rename(path)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            cause = error if isinstance(error, OSError) else OSError(_errno_of(error), str(error))
            raise storage_error(cause, path) from error
        self._prune()

    def _put(self, path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.before()
        with tempfile.TemporaryDirectory(prefix="megpt-") as scratch:
            folder = Path(scratch)
            try:
                save_file(tensors, folder / STATE)
            except (OSError, SafetensorError) as error:
                cause = error if isinstance(error, OSError) else OSError(_errno_of(error), str(error))
                raise storage_error(cause, folder) from error
            (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            manifest = {name: _digest(folder / name) for name in (STATE, META)}
            (path / MANIFEST).unlink(missing_ok=True)  # of the same step, put before
            put_tree(folder, path)
            write_text(path / MANIFEST, json.dumps(manifest, indent=1))

    def _prune(self) -> None:
        pinned = self._pinned()
        kept = set(self._folders()[-self.keep :]) | ({pinned[0]} if pinned else set())
        for path in self._folders():
            if path not in kept:
                remove_tree(path)
        # Leftovers of a killed writer: no other process writes here while the output is claimed.
        own = f".{socket.gethostname()}.{os.getpid()}"
        for path in self.folder.glob(f".{PREFIX}*"):
            if not path.name.endswith(own):
                shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*")) if self.folder.is_dir() else []

    def _check(self, path: Path) -> Checkpoint | None:
        try:
            if is_address(path) and (path / MANIFEST).is_file():
                copy = here(path)
                return None if self._check(copy) is None else self.at(path)
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            wrong = [name for name in (STATE, META) if _digest(path / name) != manifest[name]]
            if not wrong:
                return Checkpoint(path, json.loads((path / META).read_text(encoding="utf-8")))
            reason = f"{wrong[0]} does not match its manifest"
        except FileNotFoundError as error:
            reason = f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"unreadable ({type(error).__name__})"
        self._warn(f"warning: checkpoint {path} is damaged and is skipped: {reason}")
        return None


def _name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _errno_of(error: SafetensorError) -> int:
    """The errno in a SafetensorError's text ("… (os error 28)"), 5 (input/output) when it has none."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else 5


def export(
    model: nn.Module,
    processor: Any,
    store: CheckpointStore,
    output: Path,
    *,
    shapes: dict[str, torch.Size],
    samples: Samples,
    failed: dict[str, str],
    origin: tuple[str, str],
    ready: Callable[[nn.Module, Any], dict[str, Any]] = lambda model, processor: {},
) -> dict[str, Any]:
    """Write the Hugging Face folder from the best checkpoint by validation, or else from the newest one.

    Args:
        model: with all weights in place; those that were trained are overwritten.
        shapes: of the trained parameters, as the model was built (the engine may have changed them).
        failed: study id → reason, of the films that could not be decoded during training.
        origin: path and format of the source of the studies.
        ready: gets the model, which then holds the weights to be written, and the processor; adds to the summary.

    Returns:
        The summary of the run, for `_SUCCESS`.
    """
    chosen, score = store.best() or (store.newest(), None)
    if chosen is None:
        raise RuntimeError("no whole checkpoint at the end of the run")
    weights = dict(model.state_dict())
    for key, value in chosen.tensors().items():
        role, name = key.split("/", 1)
        if role in (MASTER, BUFFER):
            own = weights[name].detach()
            weights[name] = value.to(own.dtype).view(shapes.get(name, value.shape))
            own.copy_(weights[name])
    more = ready(model, processor)
    save: Any = model.save_pretrained
    save(output, state_dict=weights, scores=None if score is None else {"best_metric": score})
    processor.save_pretrained(output)
    rows = [{**row, "source": origin[0], "format": origin[1]} for row in _failed_rows(samples, failed)]
    with write_aside(output / FAILED) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, FAILED_SCHEMA), temporary)
    return {
        "steps": chosen.meta["total_steps"],
        "checkpoint_step": chosen.step,
        "best_metric": score,
        "studies": len(samples),
        "left_out": samples.left_out,
        "missing": len(samples.failed),
        "failed": len(rows),
        **more,
    }


def _failed_rows(samples: Samples, failed: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of FAILED_SCHEMA without `source`: films missing before training, and films found unreadable during it."""
    rows = list(samples.failed)
    if failed:
        for index in range(len(samples)):
            study = samples.study(index)
            if study.study_id in failed:
                rows.append(study.failed_row(failed[study.study_id]))
    return rows
