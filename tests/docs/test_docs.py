"""The documentation, as somebody reads it who follows every link and types every command.

- every relative link leads to a file, and every anchor to a heading of it
- every module, test, benchmark and config that the documentation names in code font exists
- every `megpt` command parses: its job, its config and its settings exist
- every Python block compiles, and what it imports from megpt exists
- README's shell blocks are make targets, ray commands or megpt commands that exist
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from megpt.config import KNOWN_KEYS, load_config
from megpt_pacs.settings import DicomWebOptions
from ray_jobs.__main__ import jobs, own_settings, parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *ROOT.glob("examples/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(
    r"`((?:megpt|megpt_pacs|ray_jobs|tests|benchmarks|docs|configs|deploy|deepspeed_configs|examples)/[\w./-]+\.\w+)`"
)


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def commands(path: Path) -> list[str]:
    """The lines of shell blocks, with continuation lines joined and comments dropped."""
    lines = []
    for block in blocks(path, "", "bash", "sh"):
        joined = block.replace("\\\n", " ")
        lines += [line.split(" # ")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{target} leads nowhere"
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(file), f"{target}: {named(file)} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_named_files_exist(page: Path) -> None:
    for name in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        start = re.search(r"(?:^|-- )(?:python -m ray_jobs|megpt) +(.*)$", line)
        words = shlex.split(start[1]) if start else []
        if not words or words[0].startswith("-") or words[0].isupper():  # megpt --help, megpt JOB …
            continue
        assert words[0] in jobs(), f"{page.name}: no job {words[0]} in {line}"
        added = [leaf.key for leaf in own_settings(words[0])]
        known = {*KNOWN_KEYS, *added, *(key.partition(".")[2] for key in added)}
        known |= {f"data.options.{name}" for name in DicomWebOptions.model_fields}
        options, rest = parser().parse_known_args([word for word in words if word not in ("…", "...")])
        keys = [word for word in [*options.overrides, *rest] if "=" in word]
        for key in keys:
            assert key.partition("=")[0] in known, f"{page.name}: no setting {key} in {line}"
        configs = options.config if isinstance(options.config, list) else [options.config]
        for config in filter(None, configs):
            if config not in ("FILE", "mine.yaml"):
                load_config(config)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_compile_and_import(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, named(page), "exec")
        for module, names in re.findall(r"^from (megpt[\w.]*|ray_jobs[\w.]*) import ([\w, ]+)$", block, re.MULTILINE):
            loaded = importlib.import_module(module)
            for name in names.split(","):
                assert hasattr(loaded, name.strip()), f"{module} has no {name.strip()}"


def test_make_targets_of_the_documentation_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for line in commands(page):
            for target in re.findall(r"\bmake ([a-z-]+)", line):
                assert target in targets, f"{page.name}: make {target}"
