"""What a command has found out on this machine, so that the next one need not: small values in the user's cache.

    known = recall("trial", depends)          # None: nobody has found it out, or the file is gone or damaged
    remember("trial", depends, value)

A value is filed under the hash of all that it depends on, so it never grows old. Whoever cannot read or write the cache
pays some seconds again, and nothing else. The folder is its owner's alone (0700), and so is each file (0600).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import megpt
from megpt.places.cache import REMEMBERED, cache_root

MOST = 500
"""Files that are kept; beyond them the oldest go."""
SOFTWARE = ("torch", "transformers", "tokenizers", "safetensors", "timm")


@cache
def software(*rooms: str) -> tuple[str, ...]:
    """What code a finding depends on: Python, the libraries, megpt, and the source of some of its rooms."""
    root = Path(megpt.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for room in rooms for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    libraries = (f"{name} {version(name)}" for name in SOFTWARE)
    return (f"python {python_version()}", *libraries, f"megpt {megpt.__version__}", digest.hexdigest())


def recall(what: str, depends: Any) -> Any:
    """The value that was remembered; None where there is none.

    Args:
        depends: anything that JSON can hold.
    """
    try:
        content = json.loads(_path(what, depends).read_text(encoding="utf-8"))
        return content["value"] if content["what"] == what else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # RuntimeError: the user has no home
        return None


def remember(what: str, depends: Any, value: Any) -> None:
    """Keep a value for later commands of this user, if the cache can be written."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(what, depends)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"what": what, "value": value}, file)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _forget_the_oldest(path.parent)


def _path(what: str, depends: Any) -> Path:
    key = hashlib.sha256(json.dumps([what, depends], sort_keys=True).encode()).hexdigest()
    return cache_root() / REMEMBERED / f"{key[:32]}.json"


def _forget_the_oldest(folder: Path) -> None:
    kept = list(folder.iterdir())
    if len(kept) > MOST:
        for path in sorted(kept, key=lambda path: path.stat().st_mtime)[: len(kept) - MOST]:
            path.unlink(missing_ok=True)
