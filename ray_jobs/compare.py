"""Two or more predictions/ folders → compare.json, per_study.parquet: which is better, and whether that may be chance.

    megpt compare runs/base/predictions runs/ours/predictions output=runs/base-or-ours

Differences have intervals over patients, and p values by paired randomisation. Nothing is written before everything is
computed, so a killed job starts again from the beginning.
"""

from __future__ import annotations

import json

import pyarrow.parquet as pq

from megpt.config import Config
from megpt.data.studies import COMPRESSION
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.errors import InputError
from megpt.evaluation.compare import compare
from megpt.evaluation.pairs import fingerprint, read_pairs
from megpt.output import claim, write_aside
from megpt.progress import log
from ray_jobs.evaluate import run_on_ray
from ray_jobs.runtime import cluster, require_one_cpu

RESULT, TABLE = "compare.json", "per_study.parquet"


def run(config: Config, paths: list[str], *, dry_run: bool = False) -> int:
    """Compare finished predictions/ folders; returns the exit code.

    Raises:
        InputError: fewer than two folders, one that is not finished, or no study in common.
    """
    config.require("output")
    if len(paths) < 2:
        raise InputError("compare needs two predictions/ folders or more", next="megpt compare A B output=PATH")
    names = [f"{path} ({paths[:k].count(path) + 1})" if path in paths[:k] else path for k, path in enumerate(paths)]
    section = config.data.section
    systems = {
        name: read_pairs(path, studies=config.studies, section=section, limit=config.limit)
        for name, path in zip(names, paths, strict=True)
    }
    if dry_run:
        log(f"compare: would compare {', '.join(f'{n} ({len(s.pairs)} studies)' for n, s in systems.items())}")
        return 0
    identity = {
        "predictions": [fingerprint(path) for path in paths],
        "studies": studies_fingerprint(config.studies) if config.studies else None,
        "data": config.data.model_dump(mode="json", include={"cleaner", "section"}),
        "evaluate": config.evaluate.model_dump(mode="json", include={"bootstrap", "confidence", "meteor"}),
        "seed": config.seed,
        "limit": config.limit,
    }
    with claim(config.output, job="compare", identity=identity, config=config) as output:
        if output.done:
            log(f"compare: {output.path} is finished; nothing to do")
            return 0
        with cluster(config.cluster):
            require_one_cpu(config.cluster)
            found = compare(
                systems, cleaner=config.data.cleaner, settings=config.evaluate, seed=config.seed, run=run_on_ray
            )
        with write_aside(output.path / TABLE) as temporary:
            pq.write_table(found.table(), temporary, **COMPRESSION)
        with write_aside(output.path / RESULT) as temporary:
            temporary.write_text(json.dumps(found.result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        output.finish(n=found.result["n"])
    for line in found.lines():
        log(f"compare: {line}")
    log(f"compare: {output.path / RESULT}")
    return 0
