"""Fingerprints: short hashes of weights, and of everything in a checkpoint folder that loading it reads.

Files are hashed on disk, without torch: every job names its checkpoint by this hash, and importing torch and
transformers takes longer than hashing the files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from megpt.errors import InputError
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.prompts import CENTROIDS, PROMPTS, read_prompts

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OWN_TYPE = "megpt"
DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a missing or damaged file raises; the last two come from JSON values of the wrong type."""

IGNORED_FIELDS = {
    "transformers_version": "the version that wrote the file",
    "complete": "whether the frozen parts are held; a part counts the same, held or named",
    "checkpoint_format": "the layout of the folder, checked on load",
    "frozen.*.revision": "of a hub id; the weights are hashed",
    "frozen.*.source": "where a frozen part was when the checkpoint was saved; its fingerprint is hashed",
    "llm": "the path or hub id of the language model; its weights are hashed",
    "text_config._name_or_path": "the same",
    "vision_weights": "where the encoder's weights came from; they are hashed",
}
"""Fields of config.json and generation_config.json that do not affect the model, each with the reason."""

IGNORED_FILES = {
    "README.md": "the model card",
    "LICENSE": "terms of use",
    "megpt.yaml": "the config of the job that wrote the folder",
    "run.json": "a record of that job",
    "_SUCCESS": "the mark of a finished job",
    "failed.parquet": "studies that a training run could not use",
    "log.jsonl": "the training log",
    "events.jsonl": "what the job that wrote the folder did, and when",
    "config.json": "hashed by field",
    "generation_config.json": "hashed by field",
    PROMPTS: "hashed by entry: comments and layout do not matter",
}
"""Files of a checkpoint folder whose bytes are not hashed, each with the reason. Weights are hashed by tensor."""

# safetensors' names of types, as torch calls them.
_NUMBERS = {"I": "int", "U": "uint", "F": "float"}
TYPES = {f"{letter}{bits}": f"{name}{bits}" for letter, name in _NUMBERS.items() for bits in (8, 16, 32, 64)} | {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}

Digests = tuple[tuple[str, str], ...]
"""The name of each tensor, and a hash of its name, type, shape and values."""


def fingerprint(folder: str | Path) -> str:
    """A short hash of a checkpoint folder (or hub id): of every file that loading the model and its processor reads.

    What does not count is listed in `IGNORED_FIELDS` and `IGNORED_FILES`, and anything unknown counts. The number of
    shards does not matter, nor whether a frozen part is held or named, as long as the held tensors are those named.

    Raises:
        InputError: no checkpoint folder, or a file of it is missing or damaged.
    """
    folder = local_folder(str(folder))
    if not is_own(folder):
        return _foreign(folder)
    prompts = read_prompts(folder)
    config, frozen = _config(folder)
    try:
        content = {
            "config": config,
            "prompts": prompts,
            "weights": _parts(folder, frozen),
            "centroids": _file_digests(folder / CENTROIDS) if (folder / CENTROIDS).exists() else [],
        }
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error
    content["files"] = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in _others(folder)
    }
    if (path := folder / "generation_config.json").exists():
        content["generation"] = _read_fields(path)
    return _short(json.dumps(content, sort_keys=True))


def is_own(folder: str | Path) -> bool:
    """Whether a folder holds a MeGPT checkpoint, and not another model of the hub.

    Raises:
        InputError: its config.json cannot be read.
    """
    path = Path(folder) / "config.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("model_type", OWN_TYPE) == OWN_TYPE)
    except DAMAGE as error:
        raise damaged(str(path), error) from error


def _foreign(folder: Path) -> str:
    """The fingerprint of a model of the hub: of its weights, and of every other file that transformers may read."""
    files = [*_others(folder), *(folder / name for name in ("config.json", "generation_config.json"))]
    content = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
    try:
        return _short(json.dumps([content, files_fingerprint(weight_files(folder))], sort_keys=True))
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error


def files_fingerprint(files: Sequence[Path]) -> str:
    """A short hash of all tensors in safetensors files, the same for any number of shards."""
    return _joined(digest for _, digest in _files_digests(_stamped(files)))


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors: the `files_fingerprint` of files that hold them."""
    return _joined(_tensor_digest(name, tensor) for name, tensor in tensors.items())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's index names, or its only one. A damaged index raises one of `DAMAGE`."""
    if not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    return [folder / Path(name).name for name in sorted(set(names))]


def damaged(what: str, error: Exception) -> InputError:
    """The error to raise when reading `what` raised one of `DAMAGE`."""
    return InputError(
        f"{what} cannot be read",
        cause=f"{type(error).__name__}: a file is missing or damaged, as after a download that was cut short",
        next="download or copy the whole folder again",
    )


def _config(folder: Path) -> tuple[Any, set[str]]:
    """The fields of config.json that count, and the fingerprints of the frozen parts."""
    config = _read_fields(path := folder / "config.json")
    try:
        return config, {entry["fingerprint"] for entry in (config["frozen"] or {}).values()}
    except DAMAGE as error:
        raise damaged(str(path), error) from error


def _read_fields(path: Path) -> Any:
    """The fields of a JSON file without those of `IGNORED_FIELDS`."""
    try:
        return _counted(json.loads(path.read_text(encoding="utf-8")))
    except DAMAGE as error:
        raise damaged(str(path), error) from error


def _counted(value: Any, parent: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    paths = {key: f"{parent}{key}" for key in value}
    kept = [key for key, path in paths.items() if not any(fnmatchcase(path, ignored) for ignored in IGNORED_FIELDS)]
    return {key: _counted(value[key], f"{paths[key]}.") for key in kept}


def _parts(folder: Path, frozen: set[str]) -> dict[str, str]:
    """The hash of each part of the model that the folder holds, adapters included; frozen parts count by name."""
    digests: dict[str, list[str]] = {}
    for name, digest in _files_digests(_stamped(weight_files(folder)), by_part=True):
        digests.setdefault(name.partition(".")[0], []).append(digest)
    for path in folder.glob("adapter_*/*.safetensors"):
        digests[path.parent.name] = [digest for _, digest in _file_digests(path)]
    hashes = {part: _joined(own) for part, own in digests.items()}
    return {part: found for part, found in hashes.items() if found not in frozen}


def _others(folder: Path) -> list[Path]:
    """Further files that a load may read: the processor's, the tokenizer's, and any that are not known here."""
    return [
        path
        for path in sorted((*folder.glob("*"), *folder.glob("additional_chat_templates/*")))
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in (*IGNORED_FILES, INDEX)
        and path.suffix != ".safetensors"
    ]


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
    return _short("".join(sorted(digests)))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamped(files: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    return tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@lru_cache(maxsize=16)
def _files_digests(files: tuple[tuple[Path, int, int], ...], *, by_part: bool = False) -> Digests:
    with ThreadPoolExecutor(4) as pool:  # a language model is a few files of gigabytes
        found = pool.map(lambda file: _file_digests(file[0], by_part=by_part), files)
        return tuple(pair for pairs in found for pair in pairs)


def _file_digests(path: Path, *, by_part: bool = False) -> Digests:
    """The digests of one file; `by_part` leaves the first component out of the names that are hashed.

    Raises SafetensorError for a damaged file.
    """
    if path.suffix == ".gguf":  # its tensors are blocks of many formats: the file counts as one
        with path.open("rb") as file:
            return ((path.suffix, hashlib.file_digest(file, "sha256").hexdigest()),)
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
                hashed = name.partition(".")[2] if by_part else name
                with view[begin:end] as raw:
                    pairs.append((name, _digest(hashed, dtype, entry["shape"], raw)))
        return tuple(pairs)
