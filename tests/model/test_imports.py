"""Who imports whom inside megpt/model, read from the source (imports inside functions and for types included).

- No circle.
- `reference` and `cost` import the model, never the other way round.
- Loading a checkpoint is a straight walk through five files: modeling, load, prompts, language, vision. `load` calls
  the others in the order that its docstring gives, and none of them calls back; `fingerprint` and `lora` help.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "megpt" / "model"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(MODEL.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """The modules of megpt.model that a file imports; a name that is no module counts as its module's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in full}
    return found & FILES.keys()


def test_no_circle() -> None:
    # The package's own names load on first use, after all of its files.
    graph = {name: imports_of(path) for name, path in FILES.items() if name != "megpt.model"}
    assert all("megpt.model" not in found for found in graph.values())
    assert len(graph) > 20 and "megpt.model.fem" in graph["megpt.model.projector"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_arrows() -> None:
    for name, path in FILES.items():
        rooms = {found.split(".")[2] for found in imports_of(path) if found.count(".") > 1}
        if name.split(".")[2:3] not in (["reference"], ["cost"]):
            assert not rooms & {"reference", "cost"}, name


def test_loading_is_a_straight_walk() -> None:
    load = FILES["megpt.model.checkpoint.load"]
    helpers = {"megpt.model.configuration", "megpt.model.checkpoint.fingerprint", "megpt.model.lora"}
    helpers |= {f"megpt.model.{name}" for name in ("checkpoint.fetch", "checkpoint.places", "source")}
    walk = {f"megpt.model.{name}" for name in ("prompts", "language", "vision")}
    assert imports_of(load) == helpers | walk
    callers = {name for name in FILES if "megpt.model.checkpoint.load" in imports_of(FILES[name])}
    # the encoder alone, for work on films that needs no language model
    assert callers == {"megpt.model.modeling", "megpt.model.checkpoint.encoder"}
    (function,) = (
        node
        for node in ast.parse(load.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "load_model"
    )
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    order = [ast.unparse(call) for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset))]
    steps = (
        "local_folder(",
        "read_config(",
        "_read_tensors(",
        "PromptBank.load(",
        "_language_model(",
        "restored_encoder('vision'",
        "model_class(",
        "restored_encoder('prompt_encoder'",
        "_restore(model.projector",
        "lora.load_adapters(",
        "language.load_language_adapter(",
    )
    assert [call[: len(step)] for call in order for step in steps if call.startswith(step)] == list(steps)
