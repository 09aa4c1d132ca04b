"""What an output folder holds, from its files alone.

    megpt status runs/reports

Exit code 0 whatever the state; 2 when the folder is not an output of megpt.
"""

from __future__ import annotations

import yaml

from megpt.config import Config
from megpt.errors import InputError, printable
from megpt.generation.predictions import Predictions
from megpt.output import RECORD, SUCCESS, is_locked
from megpt.places import place, screen


class Status:
    """Prints job, studies done, failed and left, rate and time left."""

    name = "status"
    reads: tuple[str, ...] = ()
    """No setting: the folder says everything."""

    @staticmethod
    def run(config: Config, folder: str, *, dry_run: bool = False) -> int:
        """Reads only, so `dry_run` changes nothing.

        Raises:
            InputError: no such folder, or one that no job has written.
        """
        path = place(folder)
        try:
            record = yaml.safe_load((path / RECORD).read_text(encoding="utf-8"))
            job = str(record["job"])
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
            if (refused := screen(error)) is not None:
                raise refused from None
            raise InputError(
                f"{path} is not an output of megpt",
                cause=f"it has no readable {RECORD}" if path.is_dir() else "there is no such folder",
                next="give the folder that was output=PATH",
            ) from None
        print(printable(f"{job}: {path}"))
        predictions = Predictions.open(path) if job == "generate" else None
        if predictions is not None:
            print("\n".join(predictions.status().lines()))
        elif (path / SUCCESS).exists():
            print("finished")
        elif is_locked(path):
            print("running: planning" if job == "generate" else "running")
        else:
            print("stopped\nrun the same command again: it resumes")
        return 0
