"""The command line: `megpt JOB --config FILE [section.key=value …]`, the same as `python -m ray_jobs JOB …`.

Exit codes: 0 done; 2 bad command, config or input, nothing written; 3 done, but more studies failed than allowed;
130 and 143 stopped by Ctrl-C and SIGTERM, and the same command resumes; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from megpt import events
from megpt.errors import InputError, MegptError, did_you_mean
from megpt.places import check, is_address, screen
from megpt.progress import console, log
from ray_jobs.completion import ASKED, SHELLS
from ray_jobs.entries import JOBS, find, jobs, own_settings, reads_of
from ray_jobs.stopping import Terminated, end_process, terminable

if TYPE_CHECKING:
    from megpt.config import Config


PATHS = ("output", "source", "studies", "prompts", "checkpoint", "predictions", "references", "training", "ids")
HERE_ONLY = frozenset({"ablate", "demo"})
"""Jobs of many outputs, which resume by what lies in their folders."""
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
        text = (find(name).__doc__ if name == described and name not in JOBS else None) or entry.text
        settings = _settings(name) if name == described else ""
        job = commands.add_parser(
            name,
            help=entry.text,
            description=text,
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
        if entry.watch:
            job.add_argument("--watch", action="store_true", help="show it anew until the job has ended")
        job.add_argument(
            "--log-format", choices=("text", "json"), default="text", help="json: events on stdout, a line each"
        )
        job.add_argument("--debug", action="store_true", help="show tracebacks")
        job.add_argument("overrides", nargs="*", metavar="section.key=value", help="override one setting")
    return top


def _settings(name: str) -> str:
    from megpt.config import help_text
    from megpt.config.reference import leaves_text

    return help_text(reads_of(name)) + "\n" + leaves_text(own_settings(name))


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if ASKED in os.environ:
        from ray_jobs.completion import answer

        answer(parser(), {name: entry.section for name, entry in jobs().items()})
    arguments = sys.argv[1:] if argv is None else argv
    with events.on_stdout("json" in _values_of("--log-format", arguments)):
        code, error = _answered(arguments)
        if error is not None and events.for_people():
            console.print(f"error: {error}", style="red", markup=False)
        if not events.for_people():
            events.emit("exit", code=code, **({"error": events.as_values(error)} if error else {}))
    # Ray Serve's threads would abort an interpreter that takes itself apart.
    at_once = (("report", 0), ("serve", 128 + signal.SIGTERM), ("serve", 128 + signal.SIGINT))
    return end_process(code) if argv is None and (arguments[:1], code) in [([job], n) for job, n in at_once] else code


def _answered(arguments: list[str]) -> tuple[int, MegptError | None]:
    """The exit code of a command, and the error that is to be shown."""
    debug = "--debug" in arguments
    try:
        with terminable():
            return _run(arguments), None
    except (KeyboardInterrupt, Terminated) as stop:
        log("interrupted; run the same command again to resume")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT), None
    except BrokenPipeError:  # whoever read the output has read enough, as `megpt … | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE, None
    except MegptError as error:
        if debug:
            raise
        return error.exit_code, error
    except Exception as error:
        if debug:
            raise
        if (refused := screen(error)) is not None:
            return refused.exit_code, refused
        # The message of an unforeseen error may quote its input, so only its type is shown.
        next_step = "the same command with --debug shows where"
        return 1, MegptError(f"unexpected {type(error).__name__}", next=next_step)


def _values_of(option: str, arguments: list[str]) -> list[str]:
    """What a command line gives for an option, as `--option value` or `--option=value`."""
    after = [value for name, value in pairwise(arguments) if name == option]
    return after + [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]


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
    _check_addresses(config)
    if options.print_config:
        print(config.to_yaml(), end="")
        return 0
    _check_output(options.job, config)
    _check_named(options.job, config)
    if not (options.dry_run and config.output is None):  # an estimate needs none
        from ray_jobs.extras import require_extras

        require_extras(f"`megpt {options.job}`", entry.extras)
    positional = [getattr(options, name) for name in entry.arguments]
    if entry.several:
        positional[-1:] = positional[-1]
    more = ({"as_json": options.json} if entry.json else {}) | ({"watch": options.watch} if entry.watch else {})
    return int(find(options.job).run(config, *positional, dry_run=options.dry_run, **more))


def _is_path(word: str) -> bool:
    """Whether a word names a path rather than an override; a folder such as `split=test` may hold a =."""
    return "=" not in word or Path(word).exists()


def configure(options: argparse.Namespace) -> Config:
    """The config a command line means."""
    from megpt.config import KNOWN_KEYS, load_config

    section = jobs()[options.job].section
    own = {key.partition(".")[2]: key for key in KNOWN_KEYS if section and key.startswith(f"{section}.")}
    added = own_settings(options.job)
    short = {leaf.key.removeprefix(f"{options.job}."): f"options.{leaf.key}" for leaf in added}
    own |= {name: key for name, key in short.items() if name not in KNOWN_KEYS}
    overrides = []
    for override in options.overrides:
        key, sign, value = override.partition("=")
        if added and key.startswith(f"{options.job}."):
            key = f"options.{key}"
        overrides.append(f"{own.get(key, key)}{sign}{value}")
    if options.limit is not None:
        overrides.append(f"limit={options.limit}")
    return load_config(options.config, overrides)


def _check_named(job: str, config: Config) -> None:
    """Refuse a setting that was named for a job that does not read it."""
    from megpt.config import refuse_unread

    reads = reads_of(job)
    try:
        refuse_unread(job, reads, config.named)
    except InputError:  # who reads it is worth importing every job
        known = {}
        for name in jobs():
            with contextlib.suppress(InputError):  # its extra is not installed
                known[name] = reads_of(name)
        refuse_unread(job, reads, config.named, known)


def _check_addresses(config: Config) -> None:
    """Refuse addresses that hold a secret or cannot be used, before anything prints them."""
    paths = {name: getattr(config, name) for name in PATHS}
    paths |= {"data.reports": config.data.reports, "data.annotations": config.data.annotations}
    for name, value in paths.items():
        if is_address(value):
            # a source of another package may have a kind of address of its own
            check(value, setting=name, writing=name == "output", known_only=name != "source")


def _check_output(job: str, config: Config) -> None:
    """Refuse an output that would be lost.

    Raises:
        InputError: a relative path in a job that `ray job submit` started: it would be inside the uploaded copy of
            the working directory and be deleted with it. Or an address, for a job that writes to paths only, or one
            inside the archive that the job reads.
    """
    if config.output is None:
        return
    if is_address(config.output):
        if job in HERE_ONLY:
            raise InputError(
                f"output = {config.output!r}: {job} writes to a folder of this machine only",
                next=f"choose a folder, and copy it; {', '.join(sorted(JOBS.keys() - HERE_ONLY))} take addresses",
            )
        read = {name: getattr(config, name) for name in ("source", "studies", "predictions")}
        for name, value in read.items():
            if value is not None and f"{config.output}/".startswith(f"{value.rstrip('/')}/"):
                raise InputError(
                    f"output = {config.output!r} lies inside {name} = {value!r}",
                    cause="what the job writes would be listed with what it reads",
                    next="choose another output=",
                )
        return
    if SUBMITTED in os.environ and not Path(config.output).is_absolute():
        raise InputError(
            f"output = {config.output!r} is relative inside a submitted job",
            where=f"{Path.cwd()}, the uploaded copy that Ray deletes after the job",
            cause="the results would be lost with it",
            next="choose an absolute path on storage that every node mounts: output=/shared/…",
        )


if __name__ == "__main__":
    sys.exit(main())
