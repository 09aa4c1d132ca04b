"""The rooms of the house and who may call whom, read from the source itself (imports inside functions included).

- megpt never imports ray or ray_jobs; neither of them imports the extension megpt_pacs, which entry points alone name.
- The shared nouns (study, config, settings, errors, output, progress, recipe) know no room.
- `data` and `model` use the shared nouns and not each other; `training`, `generation` and `evaluation` use `model` and
  `data` and not each other.
- No file imports itself through others: there is no circle, imports inside functions and for types included.
- No two public classes have one name.
- No source file has more than 300 lines, no test file more than 400, no function more than 60.
- The check sees every way to import: plain, from, relative, inside a function, by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"errors", "settings", "study", "config", "output", "places", "progress", "events", "recipe"}
MAY_USE = {
    "films": SHARED,
    "data": SHARED | {"films"},
    "model": SHARED | {"films"},
    "training": SHARED | {"model", "data", "films"},
    "generation": SHARED | {"model", "data", "films"},
    "evaluation": SHARED | {"model", "data", "films"},
    "demo": SHARED | {"model", "data", "films"},
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
MOST_LINES_OF_A_TEST = 400


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of everything that `tree`, a module of `package`, imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(imported(ast.parse(path.read_text(encoding="utf-8")), package))


def rooms_of(path: Path) -> set[str]:
    """The parts of megpt that a file imports: `megpt.model.fem` → model."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("megpt.")}


@pytest.mark.parametrize(
    ("line", "package", "found"),
    [
        ("import ray.data", "megpt", "ray.data"),
        ("from ray import train", "megpt", "ray"),
        ("def f():\n    from megpt.model import fem", "megpt.data", "megpt.model.fem"),
        ("from ..model import fem", "megpt.data", "megpt.model.fem"),
        ("from .. import model", "megpt.data", "megpt.model"),
        ("importlib.import_module('ray')", "megpt", "ray"),
        ("__import__('ray')", "megpt", "ray"),
        ("if TYPE_CHECKING:\n    import ray", "megpt", "ray"),
    ],
)
def test_every_way_to_import_is_seen(line: str, package: str, found: str) -> None:
    assert found in set(imported(ast.parse(line), package))


@pytest.mark.parametrize("path", sources("megpt"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_no_cluster(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_of(path)}
    assert not outside & {"ray", "ray_jobs"}


@pytest.mark.parametrize("path", sources("megpt", "ray_jobs"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_knows_the_extension(path: Path) -> None:
    assert "megpt_pacs" not in {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_the_shared_nouns_know_no_room(name: str) -> None:
    files = [ROOT / "megpt" / f"{name}.py"] if (ROOT / "megpt" / f"{name}.py").is_file() else sources(f"megpt/{name}")
    assert files
    for path in files:
        assert rooms_of(path) <= SHARED | {"__version__"}


@pytest.mark.parametrize("room", sorted(MAY_USE))
def test_arrows_between_rooms(room: str) -> None:
    files = sources(f"megpt/{room}")
    assert files
    for path in files:
        beyond = rooms_of(path) - MAY_USE[room] - {room, "__version__"}
        assert not beyond, f"{path.relative_to(ROOT)} imports megpt.{beyond.pop()}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_there_is_no_circle() -> None:
    files = {module_of(path): path for path in sources("megpt", "megpt_pacs", "ray_jobs")}
    # `from package import module` names both; the package's own file counts only where a name of it is imported.
    graph = {}
    for name, path in files.items():
        found = imports_of(path) & files.keys()
        modules = {other for other in found if any(longer.startswith(f"{other}.") for longer in found)}
        graph[name] = found - modules - {name}
    assert len(graph) > 100 and "megpt.model.fem" in graph["megpt.model.projector"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_public_classes_have_names_of_their_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in sources("megpt", "megpt_pacs", "ray_jobs"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module_of(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_every_room_is_known() -> None:
    rooms = {p.name for p in (ROOT / "megpt").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms - SHARED - {"configs", "deepspeed"} == set(MAY_USE)


@pytest.mark.parametrize(
    "path", sources("megpt", "megpt_pacs", "ray_jobs", "tests", "benchmarks"), ids=lambda p: str(p.name)
)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (MOST_LINES_OF_A_TEST if "tests" in path.parts else MOST_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{path.name}: {node.name} has {lines} lines"
