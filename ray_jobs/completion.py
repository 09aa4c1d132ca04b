"""Completion of the command line in bash, zsh and fish.

    eval "$(megpt --completion bash)"        # in ~/.bashrc; zsh likewise in ~/.zshrc
    megpt --completion fish | source         # in ~/.config/fish/config.fish

The shell asks megpt at each TAB, so nothing large is imported here: what each job reads is in reads.json, which
`python -m ray_jobs.docs` writes.
"""

from __future__ import annotations

import json
import os
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
ASKED = "_ARGCOMPLETE"
"""Set in the environment of a command that is to complete its line and not to run."""
READS = "reads.json"


def script(shell: str) -> str:
    """What the shell has to evaluate."""
    from argcomplete.shell_integration import shellcode

    return str(shellcode(["megpt"], shell=shell))


def answer(parser: ArgumentParser, sections: dict[str, str]) -> None:
    """Write what fits to where the shell reads it, and end the process; arguments as for `completed`."""
    import argcomplete

    argcomplete.autocomplete(completed(parser, sections))


def completed(parser: ArgumentParser, sections: dict[str, str]) -> ArgumentParser:
    """The parser, which now knows what its arguments may be.

    Args:
        sections: job → the section whose settings it takes without the section's name.
    """
    from argcomplete import FilesCompleter

    commands: Any = next(action for action in parser._actions if action.dest == "job")
    for name, job in commands.choices.items():
        for action in job._actions:
            if action.dest == "config":
                action.completer = configs
            elif action.nargs == "*" and not action.option_strings:
                action.completer = _words(name, sections.get(name, ""), paths=action.dest != "overrides")
            elif not action.option_strings:
                action.completer = FilesCompleter()
    return parser


def configs(prefix: str, **unused: Any) -> list[str]:
    """Names of shipped configs, and YAML files."""
    from megpt.config import shipped_names

    return [*shipped_names(), *(path for path in _paths(prefix) if path.endswith(("/", ".yaml", ".yml")))]


def _words(job: str, section: str, *, paths: bool) -> Callable[..., list[str]]:
    """What completes an override of a job, or a path where the job takes these too."""

    def complete(prefix: str, parsed_args: Any = None, action: Action | None = None, **unused: Any) -> list[str]:
        key, sign, value = prefix.partition("=")
        if sign:
            return [f"{key}={one}" for one in values(_full(key, job, section), value)]
        return [f"{key}=" for key in keys(job, section)] + (list(_paths(prefix)) if paths else [])

    return complete


def keys(job: str, section: str = "") -> list[str]:
    """The settings that a job reads, as they may be named on its command line; all for a job from elsewhere."""
    from megpt.config import KNOWN_KEYS
    from megpt.settings import covers

    reads = json.loads((files("ray_jobs") / READS).read_text(encoding="utf-8")).get(job)
    known = [key for key in KNOWN_KEYS if reads is None or any(covers(name, key) for name in reads)]
    return known + [key.partition(".")[2] for key in known if section and key.startswith(f"{section}.")]


def values(key: str, prefix: str) -> list[str]:
    """What a setting may be set to: its words, or paths."""
    from megpt.config.run import SETTINGS

    setting = next((one for one in SETTINGS if one.key == key), None)
    if setting is None:
        return []
    return [*setting.choices] or (list(_paths(prefix)) if setting.is_text else [])


def _full(key: str, job: str, section: str) -> str:
    return f"{section}.{key}" if section and f"{section}.{key}" in keys(job) else key


def _paths(prefix: str) -> Iterator[str]:
    """Files and folders that begin with `prefix`, as it is written; hidden ones where that is asked for."""
    head, _, tail = prefix.rpartition("/")
    folder = Path(os.path.expanduser(f"{head}/" if head or prefix.startswith("/") else "."))  # noqa: PTH111
    lead = prefix[: len(prefix) - len(tail)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(tail) and (tail or not entry.name.startswith(".")):
            yield lead + entry.name + ("/" if entry.is_dir() else "")
