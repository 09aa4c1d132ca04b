"""Jobs whose extra is not installed.

- one screen with the packages and the command; extras of a dependency count too, and what is there is not asked for
- the job is not imported, its help and its dry run say the same; the cost estimate needs no extra
- a source tree that nobody installed is not refused
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

from megpt.errors import InputError
from ray_jobs import extras
from ray_jobs.__main__ import JOBS, main
from ray_jobs.extras import require_extras

INSTALLED: dict[str, list[str]] = {
    "megpt": [
        "numpy>=2",
        'deep>=0.1; extra == "train"',
        'ray[train]; extra == "train"',
        'numpy>=2; extra == "metrics"',
        'scores>=1; extra == "metrics"',
        'elsewhere; extra == "metrics" and sys_platform == "plan9"',
    ],
    "ray": ["click", 'board; extra == "train"', 'grpc; extra == "serve"'],
    "numpy": [],
}


@pytest.fixture
def base_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> Any:
        if name not in INSTALLED:
            raise PackageNotFoundError(name)
        return SimpleNamespace(requires=INSTALLED[name])

    monkeypatch.setattr(extras, "distribution", distribution)


def test_one_screen(base_only: None) -> None:
    with pytest.raises(InputError) as refused:
        require_extras("`megpt demo`", ("train", "metrics"))
    assert str(refused.value) == (
        "`megpt demo` needs packages that are not installed: board, deep, scores\n"
        "  cause: the base of megpt is what `prepare`, `generate` and `report` need; the rest is in extras\n"
        '  next:  pip install "megpt[train,metrics]"'
    )
    require_extras("`megpt prepare`", ())


def test_only_the_extra_that_lacks_something_is_named(base_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSTALLED, "deep", [])
    monkeypatch.setitem(INSTALLED, "board", [])
    require_extras("train", ("train",))
    with pytest.raises(InputError, match=r'not installed: scores\n.*\n  next:  pip install "megpt\[metrics\]"'):
        require_extras("`megpt demo`", ("train", "metrics"))


@pytest.mark.parametrize("more", [["predictions=x"], ["--help"], ["predictions=x", "--dry-run"]])
def test_on_the_command_line(
    base_only: None, capfd: pytest.CaptureFixture[str], more: list[str], monkeypatch: Any
) -> None:
    def absent(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr("ray_jobs.entries.importlib.import_module", absent)
    assert main(["evaluate", "output=x", *more]) == 2
    assert capfd.readouterr().err.startswith("error: `megpt evaluate` needs packages that are not installed: scores\n")


def test_the_estimate_needs_none(base_only: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "phantom", "--dry-run"]) == 0
    assert main(["train", "--config", "phantom", "--dry-run", "output=x"]) == 2
    assert "needs packages that are not installed: board, deep\n" in capfd.readouterr().err


def test_a_key_is_refused_without_the_extras_of_other_jobs(base_only: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "train.lr=1", "source=x", "output=y"]) == 2
    assert capfd.readouterr().err.startswith("error: prepare does not read train.lr\n")


def test_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", nothing)
    require_extras("train", ("train", "metrics"))


def test_which_jobs_need_none() -> None:
    base = ("prepare", "generate", "export", "import-checkpoint", "status")
    assert not any(JOBS[name].extras for name in base)
