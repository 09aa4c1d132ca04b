"""The command line: `megpt JOB --config FILE [section.key=value …]`, the same as `python -m ray_jobs JOB …`.

Exit codes: 0 done; 2 bad command, config or input, nothing written; 3 done, but more studies failed than allowed;
130 and 143 stopped by Ctrl-C and SIGTERM, and the same command resumes; 1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from megpt.errors import InputError, MegptError, did_you_mean
from megpt.progress import console, log
from ray_jobs.completion import ASKED, SHELLS
from ray_jobs.stopping import Terminated, end_process, terminable

if TYPE_CHECKING:
    from megpt.config import Config


class Entry(NamedTuple):
    """A job of the command line, known without importing it."""

    home: str
    """module:class"""
    text: str
    arguments: tuple[str, ...] = ()
    """Names of its positional arguments."""
    several: bool = False
    """Whether the last of them takes any number of words."""
    section: str = ""
    """The section whose settings may be named without it: `full=true` for `export.full=true`."""
    json: bool = False
    """Whether it takes `--json`."""


JOBS = {
    "prepare": Entry(
        "ray_jobs.prepare:Prepare", "archive → studies/: read, check and shard an archive of films and reports"
    ),
    "fit-prompts": Entry(
        "ray_jobs.fit_prompts:FitPrompts", "studies/ → prompts/: cluster the films, one readable prompt per cluster"
    ),
    "train": Entry("ray_jobs.train.job:Train", "studies/ + prompts/ → checkpoint/: DeepSpeed ZeRO on Ray Train"),
    "generate": Entry(
        "ray_jobs.generate.job:Generate", "archive or studies/ + checkpoint/ → predictions/: sharded batch generation"
    ),
    "evaluate": Entry("ray_jobs.evaluate:Evaluate", "predictions/ → metrics.json, per_study.parquet, index.html"),
    "compare": Entry(
        "ray_jobs.compare:Compare",
        "predictions/ A B … → compare.json, per_study.parquet, index.html: differences, and whether they may be chance",
        ("paths",),
        several=True,
    ),
    "ablate": Entry(
        "ray_jobs.ablate.job:Ablate", "train, generate and evaluate variants over seeds; one table and one page"
    ),
    "demo": Entry("ray_jobs.demo.job:Demo", "all of the above on drawn films, in minutes, without a GPU"),
    "import-checkpoint": Entry(
        "ray_jobs.import_checkpoint:ImportCheckpoint",
        "a reference .pth → checkpoint/: R2GenGPT and MeGPT weights",
        ("file",),
    ),
    "export": Entry(
        "ray_jobs.export:Export",
        "checkpoint/ → a folder to share: self-contained, merged, in another number format",
        section="export",
    ),
    "report": Entry(
        "ray_jobs.report:Report",
        "the films of one study → its report on the screen: no cluster, no output folder",
        ("films",),
        several=True,
        json=True,
    ),
    "serve": Entry(
        "ray_jobs.serve.job:Serve",
        "films over HTTP → reports: a page and an API on Ray Serve, for this machine unless a token is set",
        section="serve",
    ),
    "status": Entry("ray_jobs.status:Status", "what an output folder holds: done, failed, left, rate", ("folder",)),
}
GROUP = "megpt.jobs"
"""Entry points of jobs from elsewhere: NAME = "module:class", a subclass of `ray_jobs.job.Job`."""
ALWAYS = ("output", "cluster")
"""What a job reads that reads any setting, unless it has an `always` of its own."""
# Set by `ray job submit` in the environment of the command it runs.
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class _Print(argparse.Action):
    """Prints what module:function gives, which takes work, and ends."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        module, _, function = str(self.const).partition(":")
        print(getattr(importlib.import_module(module), function)(*([values] if values else [])))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, next="megpt --help")


def jobs() -> dict[str, Entry]:
    """All jobs: megpt's own, and those that installed packages add."""
    return {point.name: Entry(point.value, f"from {point.value}") for point in entry_points(group=GROUP)} | JOBS


def find(name: str) -> Any:
    """The class of a job."""
    module, _, attribute = jobs()[name].home.partition(":")
    return getattr(importlib.import_module(module), attribute)


def reads_of(name: str) -> tuple[str, ...]:
    """The config keys and sections that a job reads."""
    job = find(name)
    return (*getattr(job, "always", ALWAYS), *job.reads) if job.reads else ()


def parser(described: str | None = None) -> argparse.ArgumentParser:
    """The whole surface of the command line (frozen in tests/ray_jobs/test_cli.py).

    Args:
        described: the job whose help lists its settings.
    """
    top = _Parser(prog="megpt", description="Radiology reports for chest X-rays at archive scale. For research only.")
    top.add_argument(
        "--version", action=_Print, nargs=0, const="ray_jobs.version:text", help="version, commit and libraries"
    )
    top.add_argument(
        "--completion",
        action=_Print,
        const="ray_jobs.completion:script",
        choices=SHELLS,
        help="print the completion of this shell",
    )
    commands = top.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=_Parser)
    for name, entry in jobs().items():
        settings = _settings(name) if name == described else ""
        job = commands.add_parser(
            name,
            help=entry.text,
            description=entry.text,
            epilog=f"settings:\n{settings}" if settings else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in entry.arguments:
            any_number = entry.several and argument == entry.arguments[-1]
            job.add_argument(argument, help="path", nargs="*" if any_number else None)
        job.add_argument(
            "--config", metavar="FILE", action="append", default=[], help="YAML file or name; of several the last wins"
        )
        job.add_argument("--limit", metavar="N", type=int, help="use the first N studies only")
        job.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
        job.add_argument(
            "--dry-run", action="store_true", help="check everything, say what would be done, write nothing"
        )
        if entry.json:
            job.add_argument("--json", action="store_true", help="print all that is known of the result, as JSON")
        job.add_argument("--debug", action="store_true", help="show tracebacks")
        job.add_argument("overrides", nargs="*", metavar="section.key=value", help="override one setting")
    return top


def _settings(name: str) -> str:
    from megpt.config import help_text

    return help_text(reads_of(name))


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if ASKED in os.environ:
        from ray_jobs.completion import answer

        answer(parser(), {name: entry.section for name, entry in jobs().items()})
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        with terminable():
            code = _run(arguments)
        return end_process(code) if argv is None and arguments[0] == "report" else code
    except (KeyboardInterrupt, Terminated) as stop:
        log("interrupted; run the same command again to resume")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has read enough, as `megpt … | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MegptError as error:
        if debug:
            raise
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        # The message of an unforeseen error may quote its input, so only its type is shown.
        console.print(f"error: unexpected {type(error).__name__}", style="red", markup=False)
        console.print("  next:  the same command with --debug shows where", markup=False)
        return 1


def _run(arguments: list[str]) -> int:
    known = jobs()
    job = arguments[0] if arguments else ""
    if job and not job.startswith("-") and job not in known:
        raise InputError(f"unknown job {job!r}", next=did_you_mean(job, list(known)))
    # Options and overrides may come in any order, which argparse alone does not allow behind a subcommand.
    helped = job in known and not {"-h", "--help"}.isdisjoint(arguments)
    options, rest = parser(job if helped else None).parse_known_args(arguments)
    entry = known[options.job]
    if entry.several:
        # argparse gives all words to the first of two such arguments
        last = entry.arguments[-1]
        words = [*getattr(options, last), *options.overrides, *(word for word in rest if not word.startswith("-"))]
        setattr(options, last, [word for word in words if _is_path(word)])
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
    _check_named(options.job, config)
    positional = [getattr(options, name) for name in entry.arguments]
    if entry.several:
        positional[-1:] = positional[-1]
    more = {"as_json": options.json} if entry.json else {}
    return int(find(options.job).run(config, *positional, dry_run=options.dry_run, **more))


def _is_path(word: str) -> bool:
    """Whether a word names a path rather than an override; a folder such as `split=test` may hold a =."""
    return "=" not in word or Path(word).exists()


def configure(options: argparse.Namespace) -> Config:
    """The config a command line means."""
    from megpt.config import KNOWN_KEYS, load_config

    section = jobs()[options.job].section
    own = {key.partition(".")[2]: key for key in KNOWN_KEYS if section and key.startswith(f"{section}.")}
    overrides = []
    for override in options.overrides:
        key, sign, value = override.partition("=")
        overrides.append(f"{own.get(key, key)}{sign}{value}")
    if options.limit is not None:
        overrides.append(f"limit={options.limit}")
    return load_config(options.config, overrides)


def _check_named(job: str, config: Config) -> None:
    """Refuse a setting that was named for a job that does not read it."""
    from megpt.config import refuse_unread

    try:
        refuse_unread(job, reads_of(job), config.named)
    except InputError:  # who reads it is worth importing every job
        refuse_unread(job, reads_of(job), config.named, {name: reads_of(name) for name in jobs()})


def _check_output(config: Config) -> None:
    """Refuse an output that would be lost.

    Raises:
        InputError: a relative path in a job that `ray job submit` started: it would be inside the uploaded copy of
            the working directory and be deleted with it. Or an address, which is no path.
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
