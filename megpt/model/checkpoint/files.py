"""The files of a checkpoint folder and of a prompt bank: their names, and what can be read of them without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from megpt.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROMPTS, CENTROIDS = "prompts.yaml", "centroids.safetensors"
VISION_ADAPTER, LANGUAGE_ADAPTER = "adapter_vision", "adapter_language_model"
ADAPTER = "adapter_model.safetensors"
"""In the folder of an adapter, as peft calls it."""


def local_folder(name: str) -> Path:
    """The folder of a checkpoint, fetched from the hub when it is no local one."""
    if (Path(name) / "config.json").exists():
        return Path(name)
    if not Path(name).exists() and name.count("/") == 1:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name))
        except Exception as error:
            raise InputError(f"no checkpoint at {name!r}", cause=f"{type(error).__name__} from the hub") from error
    raise InputError(
        f"no checkpoint at {name!r}", cause="it holds no config.json", next="run `megpt train`, or check the path"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's index names, or else its one. Raises what a damaged index raises."""
    if not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    return [folder / Path(name).name for name in sorted(set(names))]


DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a missing or damaged file raises; the last two where JSON holds another kind of value."""


def damaged(what: str, error: Exception) -> InputError:
    """The error for what raised one of `DAMAGE`."""
    return InputError(
        f"{what} cannot be read",
        cause=f"{type(error).__name__}: a file is missing or damaged",
        next="copy the checkpoint folder again, whole",
    )


def read_prompts(folder: Path) -> dict[str, Any]:
    """What prompts.yaml holds: texts, sizes, examples and encoder as `PromptBank` has them.

    Raises:
        InputError: no bank there, or one that cannot be read.
    """
    try:
        tree = yaml.safe_load((folder / PROMPTS).read_text(encoding="utf-8"))
        entries = tree["prompts"]
        found = {
            "texts": tuple(entry["text"] for entry in entries),
            "sizes": tuple(entry["studies"] for entry in entries if "studies" in entry),
            "examples": tuple(tuple(map(str, entry["examples"])) for entry in entries if "examples" in entry),
            "encoder": tree.get("encoder"),
        }
        clusters = None
        if (folder / CENTROIDS).exists():
            with safe_open(folder / CENTROIDS, "np") as file:
                clusters = file.get_slice("centroids").get_shape()[0]
    except FileNotFoundError:
        raise InputError(
            f"no {PROMPTS} in {folder}", next="run `megpt fit-prompts` and set prompts= to its output"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise InputError(
            f"the prompt bank in {folder} cannot be read",
            cause=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            next=f"each entry of {PROMPTS} needs `text: …`; or run `megpt fit-prompts` again",
        ) from error
    check_prompts(found["texts"], clusters)
    return found


def check_prompts(texts: Sequence[Any], clusters: int | None) -> None:
    """Raises InputError unless there is a text for each cluster; `clusters` is None where there are none."""
    if not texts or any(not isinstance(t, str) or not t.strip() for t in texts):
        raise InputError("a prompt bank needs a text for every cluster", where=PROMPTS)
    if clusters is not None and clusters != len(texts):
        raise InputError(
            f"{len(texts)} prompts for {clusters} clusters",
            where=f"{PROMPTS} and {CENTROIDS}",
            cause="an entry was added to or removed from prompts.yaml",
            next="restore the entry, or run `megpt fit-prompts` again with another fit_prompts.num_clusters",
        )
