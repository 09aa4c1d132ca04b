"""The end of a run: the Hugging Face folder, and the studies that could not be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from megpt.output import write_aside
from megpt.study import FAILED_SCHEMA
from megpt.training.checkpoints import CheckpointStore
from megpt.training.samples import Samples
from megpt.training.state import BUFFER, MASTER

FAILED = "failed.parquet"


def export(
    model: nn.Module,
    processor: Any,
    store: CheckpointStore,
    output: Path,
    *,
    shapes: dict[str, torch.Size],
    samples: Samples,
    failed: dict[str, str],
) -> dict[str, Any]:
    """Write the checkpoint folder from the best checkpoint by validation, or else from the newest one.

    Args:
        model: with all weights in place; those that were trained are overwritten by the checkpoint's.
        shapes: of the trained parameters, as the model was built (the engine may have changed them).
        failed: study id → reason, of the films that could not be decoded during training.

    Returns:
        What the run did, for `_SUCCESS`.
    """
    found = store.best()
    chosen = found[0] if found else store.newest()
    if chosen is None:
        raise RuntimeError("no whole checkpoint at the end of the run")
    weights = dict(model.state_dict())
    for key, value in chosen.tensors().items():
        kind, name = key.split("/", 1)
        if kind in (MASTER, BUFFER):
            weights[name] = value.to(weights[name].dtype).view(shapes.get(name, value.shape))
    scores = {"best_metric": found[1]} if found else None
    model.save_pretrained(output, state_dict=weights, scores=scores)  # pyrefly: ignore[not-callable]
    processor.save_pretrained(output)
    rows = failed_rows(samples, failed)
    with write_aside(output / FAILED) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, FAILED_SCHEMA), temporary)
    return {
        "steps": chosen.meta["total_steps"],
        "checkpoint_step": chosen.step,
        "best_metric": found[1] if found else None,
        "studies": len(samples),
        "left_out": samples.left_out,
        "missing": len(samples.failed),
        "failed": len(rows),
    }


def failed_rows(samples: Samples, failed: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of FAILED_SCHEMA: films missing before training, and films found unreadable in it."""
    rows = list(samples.failed)
    if failed:
        for index in range(len(samples)):
            study = samples.study(index)
            if study.study_id in failed:
                rows.append({**study.to_row(), "split": "train", "error": failed[study.study_id]})
    return rows
