"""Checks of what every job promises of a finished output, and of one that is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.__main__ import main


def contents(folder: Path, *patterns: str) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file but the lock."""
    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern) if path.is_file()}
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in found if p.name != ".lock"}


def check_done(capfd: pytest.CaptureFixture[str], name: str, arguments: list[str], output: Path) -> None:
    """The same command, dry or not, says that there is nothing to do, and does nothing."""
    before = contents(output)
    for more in ([], ["--dry-run"]):
        capfd.readouterr()
        assert main([name, *arguments, f"output={output}", *more]) == 0
        assert f"{name}: {output} is finished, nothing to do\n" in capfd.readouterr().err
    assert contents(output) == before


def check_refused(
    capfd: pytest.CaptureFixture[str], name: str, arguments: list[str], output: Path, difference: str
) -> None:
    """The command, dry or not, is refused with the difference, and does nothing."""
    before = contents(output)
    for more in ([], ["--dry-run"]):
        capfd.readouterr()
        assert main([name, *arguments, f"output={output}", *more]) == 2
        screen = capfd.readouterr().err
        assert f"error: output {output} exists from another config\n  where: {difference}" in screen, screen
        assert screen.count("→") == 1
    assert contents(output) == before
