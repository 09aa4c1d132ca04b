"""Look at the cluster, and at what a job would upload, before anything depends on them.

    megpt doctor --config mimic_cxr_delta studies=/shared/studies output=/shared/checkpoint cluster.gpus_per_worker=1

Every node looks at itself as it would at a job's start (ray_jobs/nodes.py); a table says what it has, and a line what
is wrong and what helps. In a folder with a `.rayignore`, what `ray job submit --working-dir .` would upload is counted,
and a key or a film among it is named. Exit code 0 if all is well, else 1.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rich.table import Table

from megpt.config import Config
from megpt.errors import MegptError
from megpt.progress import console, log
from ray_jobs import ray_private
from ray_jobs.nodes import PATHS, NodeReport, examined, needs_of
from ray_jobs.runtime import cluster

SECRET_NAMES = re.compile(
    r"(^|/)(\.env.*|\.netrc|\.pgpass|id_(rsa|dsa|ecdsa|ed25519).*|auth_token|kubeconfig|credentials"
    r"|.*\.(pem|key|p12|pfx|jks|kdbx))$",
    re.IGNORECASE,
)
DATA_NAMES = re.compile(
    r"\.(dcm|png|jpe?g|tiff?|parquet|csv|tsv|xlsx?|sqlite|safetensors|pth?|bin|npz?|zip|gz|tar)$", re.IGNORECASE
)
SECRET_TEXT = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}\b")
READ_BYTES = 2**20
NAMED = 10


class Doctor:
    """Prints what is found; changes nothing."""

    name = "doctor"
    reads = (*PATHS, "train.precision", "generate.precision")

    @staticmethod
    def run(config: Config, *, dry_run: bool = False) -> int:
        """Reads only, so `dry_run` changes nothing.

        Raises:
            MegptError: a node is not as the job needs it, or a secret would be uploaded.
        """
        wrong = upload_faults(Path.cwd()) if (Path.cwd() / ".rayignore").is_file() else []
        with cluster(config.cluster):
            wrong += node_faults(config)
        if wrong:
            raise MegptError(
                f"doctor: {len(wrong)} things are not as they should be", next="mend what the lines above name"
            )
        log("doctor: all is well")
        return 0


def upload_faults(folder: Path) -> list[str]:
    """Count what a submitted job would upload from a folder, and name what should not be among it."""
    files = ray_private.uploaded(folder)
    size = sum((folder / name).stat().st_size for name in files)
    log(f"doctor: ray job submit --working-dir . would upload {len(files)} files, {size / 1e6:.1f} MB")
    found = [name for name in files if SECRET_NAMES.search(name) or DATA_NAMES.search(name) or _tells(folder / name)]
    for name in found[:NAMED]:
        log(f"doctor: {name!r} would be uploaded, and looks like a key or data; move it, or shut it out in .rayignore")
    if len(found) > NAMED:
        log(f"doctor: and {len(found) - NAMED} more")
    return found


def _tells(path: Path) -> bool:
    with path.open("rb") as file:
        return SECRET_TEXT.search(file.read(READ_BYTES)) is not None


def node_faults(config: Config) -> list[str]:
    """Have every node look at itself, and show it."""
    needs = needs_of(config, ("train", "generate", *PATHS))
    if needs.output is None:
        reports = examined(needs)
    else:
        with tempfile.NamedTemporaryFile(dir=needs.output, prefix=".megpt-doctor-") as probe:
            reports = examined(needs_of(config, ("train", "generate", *PATHS), probe=Path(probe.name)))
    console.print(table(reports))
    lines = [line for report in reports for line in report.lines()]
    for line in lines:
        log(f"doctor: {line}")
    return lines


def table(reports: list[NodeReport]) -> Table:
    columns = sorted({name for report in reports for name in report.facts})
    shown = Table("node", "CPUs", "GPUs", *columns, "verdict")
    for report in reports:
        verdict = f"{len(report.faults)} faults" if report.faults else "good"
        facts = (report.facts.get(name, "") for name in columns)
        shown.add_row(report.name, f"{report.cpus:g}", f"{report.gpus:g}", *facts, verdict)
    return shown
