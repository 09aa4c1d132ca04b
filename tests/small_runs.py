"""Small studies, and a config that trains in milliseconds a step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from megpt.config import Config
from megpt.study import APPROXIMATE, Study, View

WORDS = (
    "The heart is normal in size.",
    "The lungs are clear.",
    "There is a small right pleural effusion.",
    "No pneumothorax is seen.",
    "The heart is mildly enlarged.",
)


def film(rng: np.random.Generator, size: int = 40) -> bytes:
    """A JPEG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size, size), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_studies(count: int, split: str = "train") -> list[Study]:
    """Studies of one or two films and reports of different lengths."""
    rng = np.random.default_rng(0)
    studies = []
    for i in range(count):
        views = tuple(View(f"{split}{i}-{v}", data=film(rng)) for v in range(1 + i % 2))
        text = " ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i % 3))
        studies.append(Study(f"{split}{i:04d}", f"p{i}", views, report=text, split=split))
    return studies


def small_config(output: Path, *, studies: Path | str, llm: Path, **changes: Any) -> Config:
    """A run of six steps; dotted overrides as keywords with `__` for the dot."""
    tree = {
        "output": str(output),
        "studies": str(studies),
        "model.vision": "test_vit",
        "model.vision_weights": "none",
        "model.image_size": 32,
        "model.llm": str(llm),
        "model.dynamic_prompt": False,
        "train.max_steps": 6,
        "train.global_batch_size": 8,
        "train.lr": 3e-3,
        "train.log_every": 1,
        "train.save_every": 100,
        "train.loader_workers": 1,
        "train.loggers": [],
    }
    return Config().overridden(tree | {key.replace("__", "."): value for key, value in changes.items()})


def exact(row: dict[str, Any]) -> dict[str, Any]:
    """A row of predictions without what depends on which studies were computed together."""
    return {name: value for name, value in row.items() if name not in APPROXIMATE}


def report_rows(output: Path) -> list[dict[str, Any]]:
    """The `exact` rows of a job's reports, in the order of their files."""
    paths = sorted((output / "reports").glob("*.parquet"))
    return [exact(row) for path in paths for row in pq.read_table(path).to_pylist()]
