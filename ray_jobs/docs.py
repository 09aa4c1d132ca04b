"""Writes what is generated from the declarations of the settings and of the jobs: docs/config.md, the JSON schema, and
what each job reads, for the completion of command lines.

    python -m ray_jobs.docs          # run it after a change of megpt/config or of what a job reads

tests/test_config_docs.py fails while one of them differs from what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from megpt.config import SHIPPED, Config, json_schema
from megpt.config.reference import default_text
from megpt.config.run import SETTINGS
from megpt.settings import Fingerprinted, Indifferent, Leaf, Section, covers
from ray_jobs.entries import JOBS, reads_of

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
SCHEMA = SHIPPED / "schema.json"
READS = Path(__file__).with_name("reads.json")
HEAD = """# Settings

<!-- Made by `python -m ray_jobs.docs` from megpt/config; edit the declarations there. -->

Every setting of a config file, with its default. `megpt JOB --help` lists those that a job reads, and
`megpt JOB --config FILE --print-config` shows what a command would use.

- A value on the command line, `section.key=value`, overrides the files. Several `--config` are merged in order, and
  later ones win; a file may begin with `extends: OTHER`. The configs and DeepSpeed files that megpt ships are found
  by name.
- A setting that a job does not read is refused on the command line; in a file it is allowed, since one file may serve
  all jobs.
- **Changes the result**: with *yes*, another value on an existing output is refused, because it would give other
  results. With *no*, it may change between two starts of a job. *By contents* is a path: it may move, but what it holds
  may not change. Only the `source` or `studies` of `prepare` and `generate` stays where it is and may grow.
- `eval "$(megpt --completion bash)"` in `~/.bashrc` has TAB complete jobs, settings and their values. For zsh it is
  `zsh` in place of `bash`, and for fish `megpt --completion fish | source`.
- Editors that know `yaml-language-server` complete and check a config that begins with
  `# yaml-language-server: $schema=PATH/TO/megpt/configs/schema.json`.
"""


def job_reads() -> dict[str, tuple[str, ...]]:
    """Job → sections and keys that it reads, as the job declares in `reads`."""
    return {job: reads_of(job) for job in JOBS}


def config_page(jobs: Mapping[str, Sequence[str]]) -> str:
    """docs/config.md: one table per section."""
    lines = [HEAD]
    groups: dict[str, list[Leaf]] = {}
    for leaf in SETTINGS:
        groups.setdefault(leaf.key.rpartition(".")[0], []).append(leaf)
    for section, group in groups.items():
        about = _class_of(section).__doc__ if section else None
        lines += [f"## {section}", "", about or "", ""] if section else ["## Top level", ""]
        lines += ["| key | type | default | range | jobs | changes the result | meaning |", "|" + " --- |" * 7]
        lines += ["| " + " | ".join(_cells(leaf, jobs)) + " |" for leaf in group]
        lines.append("")
    return "\n".join(lines)


def _class_of(section: str) -> type[Section]:
    found: Any = Config
    for name in section.split("."):
        found = found.model_fields[name].annotation
    return cast("type[Section]", found)


def schema_text() -> str:
    """The JSON schema, as the file holds it."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def reads_text() -> str:
    """What each job reads, as the file holds it."""
    return json.dumps(job_reads(), indent=1) + "\n"


def _cells(leaf: Leaf, jobs: Mapping[str, Sequence[str]]) -> list[str]:
    readers = [job for job, reads in jobs.items() if any(covers(name, leaf.key) for name in reads)]
    others = [job for job, reads in jobs.items() if reads and job not in readers]
    few = len(others) < 3 < len(readers)
    who = "all" if not others else f"all but {' and '.join(others)}" if few else ", ".join(readers)
    effect = "no" if Indifferent in leaf.marks else "by contents" if Fingerprinted in leaf.marks else "yes"
    cells = [
        f"`{leaf.key}`",
        leaf.type,
        f"`{default_text(leaf)}`",
        leaf.range,
        who,
        effect,
        leaf.sentence,
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def main() -> None:
    """Write all three files."""
    PAGE.write_text(config_page(job_reads()), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    READS.write_text(reads_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
