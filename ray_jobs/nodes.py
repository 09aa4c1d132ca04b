"""Nodes that are not as a job needs them are left out, and named.

    vet(Needs, config.cluster)      # at a job's start, on the cluster that it has joined

A node may offer GPUs that torch cannot use: its driver is older than torch's CUDA, or another program holds their
memory. Ray believes the node, and torch quietly takes the CPU. A node may have no mount where the others have the
archive, or a wrong clock. So every node looks at itself (ray_jobs/health.py), all at once. A node that joins later is
looked at by its first worker, which asks torch for its GPU (`ray_jobs.runtime.require_gpu`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megpt.config import ClusterConfig, Config
from megpt.errors import MegptError
from megpt.places import is_address
from megpt.progress import log
from ray_jobs.health import ANSWER_S, Fault, Needs, examine, installed
from ray_jobs.placement import leave_out
from ray_jobs.runtime import gpus_here, joined, started, wants_gpus

PATHS = ("source", "studies", "prompts", "checkpoint", "predictions", "model.llm", "model.vision_weights")


def needs_of(config: Config, reads: Iterable[str], *, probe: Path | None = None) -> Needs:
    """The needs of a job that reads these keys and sections of the config."""
    wanted, named = {}, set(reads)
    for key in PATHS:
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        if named & {key, key.partition(".")[0]} and value and not is_address(value) and Path(value).exists():
            wanted[key] = str(Path(value).absolute())
    output = None if config.output is None or is_address(config.output) else Path(config.output).absolute()
    while output is not None and not output.exists():
        output = output.parent
    precisions = {getattr(config, name).precision for name in ("train", "generate") if name in named}
    return Needs(
        gpus=wants_gpus(config.cluster),
        bf16="bf16" in precisions,
        reads=wanted,
        output=None if output is None else str(output),
        probe=None if probe is None or is_address(probe) else str(probe.absolute()),
    )


@dataclass
class NodeReport:
    """What a node said of itself."""

    id: str
    name: str
    cpus: float = 0
    gpus: float = 0
    """As the node promises them to Ray."""
    facts: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [f"node {self.name}: {f.found}; wanted: {f.wanted}; remedy: {f.remedy}" for f in self.faults]


def examined(needs: Needs) -> list[NodeReport]:
    """Ask every living node of the cluster that this process is connected to, all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    versions, task = installed(), ray.remote(num_cpus=0, max_retries=0)(examine)
    asked = {}
    for name, node in nodes.items():
        here = NodeAffinitySchedulingStrategy(name, soft=False)
        promised = float(node["Resources"].get("GPU", 0))
        asked[task.options(scheduling_strategy=here).remote(needs, promised, versions, time.time())] = name
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    reports = []
    for reference, name in asked.items():
        node = nodes[name]
        report = NodeReport(name, str(node["NodeManagerHostname"]))
        report.cpus, report.gpus = (float(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        try:
            if reference not in answered:
                raise TimeoutError
            report.facts, report.faults = ray.get(reference)
        except Exception as error:  # whatever it is, this node cannot run a task
            report.faults = [
                Fault(
                    f"it did not answer within {ANSWER_S:g} s"
                    if isinstance(error, TimeoutError)
                    else "it runs no task",
                    "a node that runs tasks",
                    "see its raylet.err in Ray's session folder; end it, or start Ray there again",
                )
            ]
        reports.append(report)
    return sorted(reports, key=lambda report: report.name)


def _examined_here(needs: Needs) -> NodeReport:
    """Look at the GPUs of this machine, for a job that does without Ray."""
    report = NodeReport("", socket.gethostname(), gpus=gpus_here())
    of_gpus = replace(needs, reads={}, output=None, probe=None)
    report.facts, report.faults = examine(of_gpus, report.gpus, installed(), time.time())
    return report


def vet(needs: Needs, config: ClusterConfig) -> None:
    """Leave out the nodes that are not as a job needs them, and say which and why.

    A cluster of this machine alone is as good as the machine; only its GPUs are looked at.

    Raises:
        MegptError: no node is good, or one is not and `cluster.on_bad_node` is `stop`.
    """
    if not (joined() or needs.gpus):
        return
    reports = examined(needs) if started() else [_examined_here(needs)]
    bad = [report for report in reports if report.faults]
    for line in (line for report in bad for line in report.lines()):
        log(line)
    if bad and (config.on_bad_node == "stop" or len(bad) == len(reports)):
        raise MegptError(
            f"{len(bad)} of {len(reports)} nodes cannot do this job",
            where="; ".join(bad[0].lines()),
            cause="see the lines above" if len(bad) > 1 else bad[0].faults[0].found,
            next="mend or remove them (`megpt doctor` looks at all of them), then run the same command again",
        )
    leave_out({report.id for report in bad})
