"""Pushing a checkpoint to a hub: what a user of it needs, and nothing else.

    push_checkpoint("runs/checkpoint", "org/name", private=True)

A training run's folder also holds resumable steps, logs, curves, a table of failed studies and the job's config with
its paths. None of these is uploaded: `files_to_push` is a list of what may go, so that a file that nobody has thought
of stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megpt.errors import InputError
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.fingerprint import INDEX, weight_files
from megpt.model.checkpoint.places import RELATIVE
from megpt.model.prompts import CENTROIDS, PROMPTS
from megpt.progress import log

NAMES = (
    *("config.json", "generation_config.json", INDEX, PROMPTS, CENTROIDS, "README.md", "LICENSE"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    "chat_template.jinja",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
OPTIONS = ("token", "private", "revision", "commit_message", "create_pr", "endpoint")


def files_to_push(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint that its users need, by their names in the repository.

    A language model that lies inside the folder (`./llm`) is one of them.
    """
    found = {name: folder / name for name in NAMES} | {path.name: path for path in weight_files(folder)}
    for adapter in sorted(folder.glob("adapter_*/")):
        found |= {f"{adapter.name}/{name}": adapter / name for name in ADAPTER_FILES}
    for source in _local_sources(folder).values():
        if source.startswith("./"):
            part = folder / source
            inside = [part] if part.is_file() else [p for p in sorted(part.glob("*")) if _is_model_file(p)]
            found |= {path.relative_to(folder).as_posix(): path for path in inside}
    return {name: path for name, path in found.items() if path.is_file()}


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a MeGPT checkpoint",
    create_pr: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload a checkpoint folder in one commit; the repository is made if there is none. Returns the commit's URL.

    A frozen part that lies outside the folder is named without its path; the log says so.

    Raises:
        InputError: no checkpoint folder, or the hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = local_folder(str(folder))
    replaced = _without_local_paths(folder)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=replaced.get(name, str(path)))
        for name, path in files_to_push(folder).items()
    ]
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{folder} was not pushed to {repo_id!r}",
            cause=f"{type(error).__name__} from {api.endpoint}",
            next="check the name and the network, and run `hf auth login` with a token that may write",
        ) from error
    log(f"pushed {len(operations)} files of {folder} to {repo_id}")
    return str(commit.commit_url)


def push_options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of transformers' keywords that `push_checkpoint` has; the others are named in the log."""
    if ignored := sorted(keywords.keys() - set(OPTIONS)):
        log(f"push_to_hub: ignored {', '.join(ignored)}, which MeGPT checkpoints do not use")
    return {name: value for name, value in keywords.items() if name in OPTIONS and value is not None}


def _is_model_file(path: Path) -> bool:
    return path.is_file() and (path.name in NAMES or (path.name.startswith("model") and ".safetensors" in path.name))


def _local_sources(folder: Path) -> dict[str, str]:
    frozen = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("frozen") or {}
    return {part: entry["source"] for part, entry in frozen.items() if _is_local(entry["source"])}


def _is_local(place: str) -> bool:
    return place.split("/")[0] in RELATIVE or Path(place).is_absolute()


def _without_local_paths(folder: Path) -> dict[str, bytes]:
    """The text files whose paths out of the folder mean nothing elsewhere, with the last component of each instead."""
    outside = {source for source in _local_sources(folder).values() if not source.startswith("./")}
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    outside |= {place for key in ("llm", "vision_weights") if _is_local(place := tree.get(key) or "")}
    outside = {place for place in outside if not place.startswith("./")}
    if named := sorted(part for part, source in _local_sources(folder).items() if source in outside):
        log(
            f"push: {' and '.join(named)} lies outside {folder}, so the pushed checkpoint names its fingerprint only; "
            "its users give the folder themselves, or push the output of `megpt export full=true`"
        )
    texts = ["config.json", "README.md", *(f"{a.name}/adapter_config.json" for a in folder.glob("adapter_*/"))]
    replaced = {}
    for name in texts:
        if outside and (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            for place in sorted(outside, key=len, reverse=True):
                text = text.replace(place, Path(place).name)
            replaced[name] = text.encode()
    return replaced
