"""Fingerprints: short hashes of weights, and of what a checkpoint computes.

Files are hashed as they lie on disk, without torch: a job's command names its checkpoint by this, and importing torch
and transformers would take longer than hashing it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from megpt.model.checkpoint.files import (
    ADAPTER,
    CENTROIDS,
    DAMAGE,
    LANGUAGE_ADAPTER,
    VISION_ADAPTER,
    damaged,
    local_folder,
    read_prompts,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor

# safetensors' names of types, as torch calls them.
TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
SHAPE = ("vision", "image_size", "mode", "fem", "fem_domain", "views", "doconv")
"""Of config.json, what the outputs depend on beside weights and prompts."""

Digests = dict[str, str]
"""Tensor name → hash of its name, type, shape and values."""


def fingerprint(checkpoint: Any) -> str:
    """A short hash of what a checkpoint computes: trained weights, frozen parts, prompts and shape.

    Args:
        checkpoint: a checkpoint folder, or a model; a model and the folder it was saved to give the same.

    Raises:
        InputError: no checkpoint folder, or a file of it is missing or damaged.
    """
    if isinstance(checkpoint, (str, Path)):
        return _of_folder(Path(checkpoint))
    from megpt.model.checkpoint.load import held_tensors

    config, bank = checkpoint.config, checkpoint.bank
    tensors = held_tensors(checkpoint.state_dict(), config) | checkpoint.adapter_tensors()
    centroids = {} if bank.centroids is None else {"centroids": bank.centroids.float()}
    return _combined(_outline(config.to_dict()), _digests_of(tensors), bank.texts, _digests_of(centroids))


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors, in the manner of `files_fingerprint`."""
    return _joined(_digests_of(tensors).values())


def files_fingerprint(files: Sequence[Path]) -> str:
    """A short hash of all tensors in safetensors files, the same however they are cut into shards."""
    return _joined(digest for _, digest in _files_digests(_stamped(files)))


def _digests_of(tensors: Mapping[str, Tensor]) -> Digests:
    """Of tensors in memory."""
    return {name: _tensor_digest(name, tensor) for name, tensor in tensors.items()}


def _tensor_digest(name: str, tensor: Tensor) -> str:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return _digest(name, str(tensor.dtype), tensor.shape, raw)


def _digest(name: str, dtype: str, shape: Iterable[int], raw: Any) -> str:
    digest = hashlib.sha256(f"{name} {dtype} {tuple(shape)} ".encode())
    digest.update(raw)
    return digest.hexdigest()


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]


def _stamped(files: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    return tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@lru_cache(maxsize=16)
def _files_digests(files: tuple[tuple[Path, int, int], ...]) -> tuple[tuple[str, str], ...]:
    with ThreadPoolExecutor(4) as pool:  # a language model is a few files of gigabytes
        return tuple(pair for part in pool.map(_file_digests, (f for f, _, _ in files)) for pair in part)


def _file_digests(path: Path, prefix: str = "") -> list[tuple[str, str]]:
    """Name, led by `prefix`, and hash of each tensor in a file. Raises SafetensorError for a damaged one."""
    with safe_open(path, "np"):  # the library's own check of the header against the file
        pass
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        pairs = []
        with memoryview(data) as view:
            for name, entry in header.items():
                begin, end = (start + offset for offset in entry["data_offsets"])
                dtype = f"torch.{TYPES.get(entry['dtype'], entry['dtype'])}"
                with view[begin:end] as raw:
                    pairs.append((prefix + name, _digest(prefix + name, dtype, entry["shape"], raw)))
        return pairs


def _of_folder(folder: Path) -> str:
    folder = local_folder(str(folder))
    texts = read_prompts(folder)["texts"]
    path = folder / "config.json"
    try:
        outline = _outline(json.loads(path.read_text(encoding="utf-8")))
    except DAMAGE as error:
        raise damaged(str(path), error) from error
    try:
        digests = dict(_files_digests(_stamped(weight_files(folder))))
        for name in (VISION_ADAPTER, LANGUAGE_ADAPTER):
            if (path := folder / name / ADAPTER).exists():
                digests |= dict(_file_digests(path, f"{name}."))
        centroids = _file_digests(folder / CENTROIDS) if (folder / CENTROIDS).exists() else []
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error
    return _combined(outline, digests, texts, dict(centroids))


def _outline(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of config.json, what the fingerprint depends on: `SHAPE`, and the fingerprint of each frozen part."""
    frozen = {part: entry["fingerprint"] for part, entry in (config.get("frozen") or {}).items()}
    return {key: config[key] for key in SHAPE} | {"frozen": frozen}


def _combined(outline: Mapping[str, Any], tensors: Digests, texts: Sequence[str], centroids: Digests) -> str:
    frozen = outline["frozen"]
    # A full checkpoint and a partial one of the same model compute the same.
    referred = [part if part != "vision" or outline["mode"] != "deep" else "prompt_encoder" for part in frozen]
    own = [digest for name, digest in tensors.items() if name.split(".")[0] not in referred]
    parts = [
        _joined(own),
        json.dumps(frozen, sort_keys=True),
        json.dumps([outline[key] for key in SHAPE]),
        json.dumps(list(texts)),
        _joined(centroids.values()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
