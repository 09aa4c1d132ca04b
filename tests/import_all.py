"""Import every module of megpt, megpt_pacs and ray_jobs; exit code 1 with a line for each that does not import.

    .venv-lowest/bin/python tests/import_all.py

`make lowest` runs this in an environment of the lowest versions that pyproject.toml declares: a range is true only if
its lower end imports.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def main() -> int:
    failed = 0
    names = ["megpt", "megpt_pacs", "ray_jobs"]
    for package in list(names):
        folders = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(folders, f"{package}.")]
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{len(names) - failed} of {len(names)} modules import")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
