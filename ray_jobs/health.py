"""What a node sees of itself, beside what it promised and what a job needs of it.

    facts, faults = examine(needs, promised=4, versions=installed(), asked=time.time())

Nothing here waits without limit: torch is asked in a process of its own, and a path in a thread that is given up after
`LOOK_S`, since a dead mount answers nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

LOOK_S, GPU_S, ANSWER_S = 10.0, 60.0, 90.0
MIN_FREE = 2**30
CLOCK_S = 5.0
"""Clocks further apart than this spoil logs, leases and signed requests."""
ALIKE = ("megpt", "torch", "transformers", "timm", "deepspeed", "pyarrow")
"""Packages whose versions must be the command's own on every node."""
BF16_CAPABILITY = (8, 0)
ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    usable = torch.cuda.is_available()
gpus = [(torch.cuda.get_device_name(n), torch.cuda.get_device_capability(n), *torch.cuda.mem_get_info(n))
        for n in range(torch.cuda.device_count())] if usable else []
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "said": [str(w.message).splitlines()[0] for w in said]}))
"""


@dataclass(frozen=True)
class Needs:
    """What a job wants of each node it works on."""

    gpus: bool = False
    bf16: bool = False
    reads: dict[str, str] = field(default_factory=dict)
    """Key → absolute path that must be there."""
    output: str | None = None
    """The folder that is written, or its nearest parent that exists."""
    probe: str | None = None
    """A file that the command has just written there: a node that does not see it has another folder of that name."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as wanted; three short phrases for people."""

    found: str
    wanted: str
    remedy: str


def examine(
    needs: Needs, promised: float, versions: dict[str, str], asked: float
) -> tuple[dict[str, str], list[Fault]]:
    """Look at the node that this runs on.

    Args:
        promised: GPUs that the node offers to Ray.
        versions: of the packages where the job was started.
        asked: the time at which it was asked, by the clock of the node that asks.

    Returns:
        Facts for a table, and what is wrong.
    """
    now = time.time()
    facts, faults = {"memory": f"{psutil.virtual_memory().available / 2**30:.0f} GiB"}, []
    if now < asked - CLOCK_S or now > asked + ANSWER_S + CLOCK_S:
        facts["clock"] = f"{now - asked:+.0f} s"
        faults.append(
            Fault(f"its clock is {now - asked:+.0f} s off", "one time on all nodes", "start chrony or ntpd there")
        )
    here = installed()
    if other := [f"{name} {here.get(name, 'none')}" for name in versions if here.get(name) != versions[name]]:
        wanted = ", ".join(f"{name} {versions[name]}" for name in versions if here.get(name) != versions[name])
        faults.append(Fault(", ".join(other), wanted, "install from the same constraints.txt there"))
    if promised and needs.gpus:
        faults += gpu_faults(ask_torch(), promised, needs.bf16, facts)
    for key, path in needs.reads.items():
        faults += _unseen(key, path)
    faults += _unwritable(needs, facts)
    return facts, faults


def installed() -> dict[str, str]:
    found = {}
    for name in ALIKE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ask_torch() -> dict[str, Any]:
    """What torch sees of this node's GPUs, asked in another process: a driver that hangs takes nobody with it."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", ASK_TORCH]
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=GPU_S)
        return dict(json.loads(said.stdout))
    except subprocess.TimeoutExpired:
        return {"gpus": [], "said": [f"torch did not answer within {GPU_S:g} s"]}
    except ValueError:
        return {"gpus": [], "said": ["torch could not be asked"]}


def gpu_faults(seen: dict[str, Any], promised: float, bf16: bool, facts: dict[str, str]) -> list[Fault]:
    """Compare what torch sees with what the node promises.

    Args:
        seen: `gpus`, a list of (name, capability, free bytes, bytes), and what torch `said`.
    """
    gpus = seen["gpus"]
    facts["gpus"] = ", ".join(sorted({str(name) for name, *_ in gpus})) or "none usable"
    if len(gpus) < promised:
        reason = f" ({'; '.join(seen['said'])})" if seen["said"] else ""
        cuda = f" for CUDA {seen['cuda']}" if seen.get("cuda") else ""
        remedy = (
            f"install an NVIDIA driver{cuda} (docs/cluster.md, Images), or start Ray there with --num-gpus={len(gpus)}"
        )
        return [Fault(f"torch can use {len(gpus)} GPUs{reason}", f"{promised:g}, as the node promises", remedy)]
    faults = []
    for name, capability, free, size in gpus:
        if bf16 and tuple(capability) < BF16_CAPABILITY:
            found = f"{name} has compute capability {'.'.join(map(str, capability))}"
            faults.append(Fault(found, "8.0 or newer for precision=bf16", "set precision=fp32, or use newer GPUs"))
        if free < size / 2:
            found = f"another program holds {(size - free) / 2**30:.0f} of {size / 2**30:.0f} GiB of {name}"
            faults.append(Fault(found, "a GPU of its own", "end it (nvidia-smi names it)"))
    return faults


def _unseen(key: str, path: str) -> list[Fault]:
    remedy = f"mount it there: {path}"
    try:
        if within(LOOK_S, lambda: _is_filled(path)):
            return []
        found = f"{key} is not there, or an empty folder"
    except TimeoutError:
        found, remedy = f"{key} did not answer within {LOOK_S:g} s", f"mount {path} again there, or restart its server"
    return [Fault(found, f"what {key} names", remedy)]


def _is_filled(path: str) -> bool:
    return os.path.isfile(path) or (os.path.isdir(path) and next(os.scandir(path), None) is not None)  # noqa: PTH112, PTH113


def _unwritable(needs: Needs, facts: dict[str, str]) -> list[Fault]:
    faults, places = [], {"temporary files": tempfile.gettempdir()} | ({"output": needs.output} if needs.output else {})
    for what, place in places.items():
        try:
            shared = needs.probe is None or what != "output" or within(LOOK_S, lambda: os.path.exists(str(needs.probe)))  # noqa: PTH110
            writable = within(LOOK_S, lambda place=place: os.access(place, os.W_OK))
            free = within(LOOK_S, lambda place=place: shutil.disk_usage(place).free) if writable else 0
        except TimeoutError:
            faults.append(
                Fault(f"{what}: {place} did not answer within {LOOK_S:g} s", "a folder", "mount it again there")
            )
            continue
        facts[what] = f"{free / 2**30:.0f} GiB free"
        if not (writable and shared):
            found = f"{place} is not writable" if not writable else f"{place} is another folder there"
            faults.append(Fault(f"output: {found}", "one shared folder", "mount the shared storage there"))
        elif free < MIN_FREE:
            faults.append(Fault(f"{what}: {free / 2**20:.0f} MiB free in {place}", "1 GiB", "free some space there"))
    return faults


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call that may hang on a dead mount; its thread is given up then.

    Raises:
        TimeoutError: not within `seconds`.
    """
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except OSError:
            result.append(False)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise TimeoutError
    return result[0]
