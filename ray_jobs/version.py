"""What `megpt --version` prints: this version, its commit, and the libraries that reports depend on."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import megpt

LIBRARIES = ("torch", "transformers", "timm", "peft", "ray", "deepspeed", "pyarrow")
COMMIT = "COMMIT"
"""The file of package `megpt` in which a build records the commit (setup.py)."""


def text() -> str:
    """Several lines; the first is `megpt VERSION (commit …)`."""
    found = commit()
    lines = [f"megpt {megpt.__version__}" + (f" (commit {found})" if found else "")]
    lines += [f"{name} {_version(name)}" for name in LIBRARIES]
    return "\n".join([lines[0], f"python {platform.python_version()}", *lines[1:]])


def commit() -> str:
    """Of the git checkout that this runs from, else of the build; "" where neither is known."""
    root = Path(megpt.__file__).parents[1]
    if (root / ".git").exists():
        if (head := _git(root, "rev-parse", "--short=12", "HEAD")) is not None:
            return head + (", with changes" if _git(root, "status", "--porcelain", "-uno") else "")
        return ""
    recorded = files("megpt") / COMMIT
    if recorded.is_file():
        return recorded.read_text(encoding="utf-8").strip()
    try:  # pip records where a package came from (PEP 610)
        origin = json.loads(Distribution.from_name("megpt").read_text("direct_url.json") or "{}")
        return str(origin.get("vcs_info", {}).get("commit_id", ""))[:12]
    except (PackageNotFoundError, ValueError):
        return ""


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
