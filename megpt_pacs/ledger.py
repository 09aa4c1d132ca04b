"""What a send has done: `OUT/ledger.jsonl`, a line per attempt, on disk before the next report is sent.

    {"study_id": "1.2…", "instance": "2.25.…", "state": "stored", "reason": ""}

`stored`, `found` (the PACS had it already) or `failed`, with the reason. It holds UIDs and nothing of a patient, and no
text. A line that a kill cut off is dropped: the PACS is asked whether it has the report.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from megpt.output import storage_error

LEDGER = "ledger.jsonl"


class Ledger:
    """The last state of each report."""

    def __init__(self, folder: Path):
        self.path = folder / LEDGER
        self._states: dict[str, tuple[str, str, str]] = {}
        self._whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                entry: dict[str, Any] = json.loads(line)
                state = str(entry["study_id"]), str(entry["state"]), str(entry["reason"])
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self._states[str(entry["instance"])] = state
            self._whole += len(line)

    def is_done(self, instance: str) -> bool:
        """Whether the PACS has the report."""
        return self._states.get(instance, ("", "", ""))[1] in ("stored", "found")

    def add(self, study: str, instance: str, state: str, reason: str = "") -> None:
        """Note what became of a report; it is on disk when this returns.

        Raises:
            MegptError: the disk is full or cannot be written.
        """
        line = json.dumps({"study_id": study, "instance": instance, "state": state, "reason": reason}) + "\n"
        try:
            with self.path.open("ab") as file:
                file.truncate(self._whole)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._whole += len(line.encode())
        self._states[instance] = study, state, reason

    def counts(self) -> dict[str, int]:
        """How many reports are in each state."""
        found = Counter(state for _, state, _ in self._states.values())
        return {state: found[state] for state in ("stored", "found", "failed")}

    def failed(self) -> list[tuple[str, str]]:
        """(study, reason) of the reports that were not stored."""
        return [(study, reason) for study, state, reason in self._states.values() if state == "failed"]
