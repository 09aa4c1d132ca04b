"""The small files of a model's folder, by their content: what a look at the folder may depend on. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

HEAVY = frozenset(
    (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz", ".parquet", ".jsonl")
)
"""Endings of files with weights and logs, which count by their names alone."""
IDLE = frozenset(("README.md", "LICENSE", "megpt.yaml", "run.json", "_SUCCESS"))
"""Files that say something to people and to other jobs, and nothing of the model."""
MOST_BYTES = 64 << 20


def folder_state(folder: str | Path) -> list[list[str]] | None:
    """Name and hash of each file of a folder, and of those below `additional_chat_templates`.

    None where there is no folder, or a file is too large to be hashed for a look.
    """
    folder, state = Path(folder), []
    try:
        for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
            if not path.is_file() or path.name in IDLE or path.name.startswith("."):
                continue
            heavy = path.suffix in HEAVY
            if not heavy and path.stat().st_size > MOST_BYTES:
                return None
            digest = "" if heavy else hashlib.sha256(path.read_bytes()).hexdigest()
            state.append([path.relative_to(folder).as_posix(), digest])
    except OSError:
        return None
    return state
