"""The command line: `megpt JOB --config FILE [section.key=value …]`, the same as `python -m ray_jobs JOB …`.

Exit codes: 0 done; 2 bad command, config or input, nothing written; 3 done, but more studies failed than allowed;
1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from megpt import __version__
from megpt.config import Config, load_config
from megpt.errors import InputError, did_you_mean
from megpt.progress import console, log
from ray_jobs.failures import known_failure

JOBS = {
    "prepare": "archive → studies/: read, check and shard an archive of films and reports",
    "fit-prompts": "studies/ → prompts/: cluster the films, one readable prompt per cluster",
    "train": "studies/ + prompts/ → checkpoint/: DeepSpeed ZeRO on Ray Train",
    "generate": "archive or studies/ + checkpoint/ → predictions/: sharded batch generation",
    "evaluate": "predictions/ → metrics.json, per_study.parquet, index.html",
    "compare": "predictions/ A B … → compare.json, per_study.parquet: differences, and whether they may be chance",
    "ablate": "train, generate and evaluate each variant of `ablate.variants`; one table",
    "demo": "all of the above on drawn films, in minutes, without a GPU",
    "import-checkpoint": "a reference .pth → checkpoint/: R2GenGPT and MeGPT weights",
    "status": "what an output folder holds: done, failed, left, rate",
}
# Set by `ray job submit` in the environment of the command it runs.
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
POSITIONAL = {"import-checkpoint": "file", "status": "folder", "compare": "paths"}
SEVERAL = ("compare",)
"""Jobs that take any number of paths."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, next="megpt --help")


def parser() -> argparse.ArgumentParser:
    """The whole surface of the command line (frozen in tests/ray_jobs/test_cli.py)."""
    top = _Parser(prog="megpt", description="Radiology reports for chest X-rays at archive scale. For research only.")
    top.add_argument("--version", action="version", version=f"megpt {__version__}")
    jobs = top.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=_Parser)
    for name, text in JOBS.items():
        job = jobs.add_parser(name, help=text, description=text)
        if name in POSITIONAL:
            job.add_argument(POSITIONAL[name], help="path", nargs="*" if name in SEVERAL else None)
        job.add_argument("--config", metavar="FILE", help="YAML file; see configs/")
        job.add_argument("--limit", metavar="N", type=int, help="use the first N studies only")
        job.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
        job.add_argument(
            "--dry-run", action="store_true", help="check everything, say what would be done, write nothing"
        )
        job.add_argument("--debug", action="store_true", help="show tracebacks")
        job.add_argument("overrides", nargs="*", metavar="section.key=value", help="override one setting")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        log("interrupted; run the same command again to resume")
        return 1
    except Exception as error:
        if debug:
            raise
        if known := known_failure(error, _output_named(arguments)):
            console.print(f"error: {known}", style="red", markup=False)
            return known.exit_code
        # The message of an unforeseen error may quote its input, so only its type is shown.
        console.print(f"error: unexpected {type(error).__name__}", style="red", markup=False)
        console.print("  next:  the same command with --debug shows where", markup=False)
        return 1


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in JOBS:
        raise InputError(f"unknown job {arguments[0]!r}", next=did_you_mean(arguments[0], list(JOBS)))
    # Options and overrides may come in any order, which argparse alone does not allow behind a subcommand.
    options, rest = parser().parse_known_args(arguments)
    if options.job in SEVERAL:
        words = [*options.paths, *options.overrides, *(word for word in rest if not word.startswith("-"))]
        options.paths = [word for word in words if _is_path(word)]
        options.overrides = [word for word in words if not _is_path(word)]
        rest = [word for word in rest if word.startswith("-")]
    if unknown := [word for word in rest if word.startswith("-") or "=" not in word]:
        raise InputError(f"cannot read {unknown[0]!r}", cause="an override is section.key=value", next="megpt --help")
    options.overrides += rest
    config = configure(options)
    if options.print_config:
        print(config.to_yaml(), end="")
        return 0
    _check_output(config)
    module = importlib.import_module(f"ray_jobs.{options.job.replace('-', '_')}")
    if options.job in POSITIONAL:
        return int(module.run(config, getattr(options, POSITIONAL[options.job]), dry_run=options.dry_run))
    return int(module.run(config, dry_run=options.dry_run))


def configure(options: argparse.Namespace) -> Config:
    """The config a command line means."""
    overrides = list(options.overrides)
    if options.limit is not None:
        overrides.append(f"limit={options.limit}")
    return load_config(options.config, overrides)


def _is_path(word: str) -> bool:
    """Whether a word names a path rather than an override; a folder such as `split=test` may hold a =."""
    return "=" not in word or Path(word).exists()


def _output_named(arguments: list[str]) -> str | None:
    return next((word.removeprefix("output=") for word in arguments if word.startswith("output=")), None)


def _check_output(config: Config) -> None:
    """Refuse an output that would be lost.

    Raises:
        InputError: a relative path in a job that `ray job submit` started, where it would lie in the uploaded copy of
            the working directory and be deleted with it; or an address that is no path.
    """
    if config.output is None:
        return
    if "://" in config.output:
        raise InputError(
            f"output = {config.output!r} is an address, not a path",
            cause="an object store has neither locks nor renames, which resuming needs",
            next="choose a folder of a shared file system (docs/cluster.md), and copy from there",
        )
    if SUBMITTED in os.environ and not Path(config.output).is_absolute():
        raise InputError(
            f"output = {config.output!r} is relative inside a submitted job",
            where=f"{Path.cwd()}, the uploaded copy that Ray deletes after the job",
            cause="the results would be lost with it",
            next="choose an absolute path on storage that every node mounts: output=/shared/…",
        )


if __name__ == "__main__":
    sys.exit(main())
