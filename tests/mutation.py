"""Change the source in small ways, one at a time, and count the changes that no test notices.

    python tests/mutation.py                                # the five files whose faults would show nowhere else
    python tests/mutation.py megpt/training/schedule.py     # some files; the report is printed and not written

The result says on what, of which commit and by which command it was made. Survivors that no test can tell from the
source are listed in `EQUIVALENT`, each with the reason; they count among those that were tried.

Mutants of a file: each comparison, sum, product, number, truth value and `and`/`or` replaced by another, each
condition negated, each statement left out. Annotations, decorators, docstrings and the texts of errors stay. Every
mutant runs in a process forked from one that has imported the heavy libraries (and nothing of megpt), with the test
files that cover its module and a time limit; a failing or hanging test kills it. Of a file with more than `--most`
mutants a sample is taken, the same one each time.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COVERED_BY = {
    "megpt/training/schedule.py": ["tests/training/test_schedule.py"],
    "megpt/training/order.py": ["tests/training/test_order.py"],
    "megpt/generation/rules.py": ["tests/generation/test_rules.py"],
    "megpt/config/run.py": ["tests/test_config_identity.py", "tests/test_config.py"],
    "megpt/model/checkpoint/fingerprint.py": ["tests/model/test_fingerprint.py", "tests/model/test_checkpoint.py"],
}
"""Module → the tests that are asked. A file that is not here is covered by the test of its name."""
EQUIVALENT = {
    "megpt/training/order.py": {
        "Indices = npt.NDArray[np.int64]: statement left out": "used in annotations alone, which are not evaluated",
        "self._epoch, self._permutation = -1, np.empty(0, np.int64): 1 → 2": "any number that is no epoch",
        "self._epoch, self._permutation = -1, np.empty(0, np.int64): 0 → 1": "the array is replaced before it is read",
        "pieces = [*pieces, *[np.empty(0, np.int64)] * (self.world_size * self.slots - len(pieces))]: Sub → Add": (
            "more empty pieces behind those that are taken"
        ),
    },
    "megpt/generation/rules.py": {
        "finished=full((rows, beams), False, torch.bool),: False → True": (
            "an empty place has the score NEVER, and so is the worst either way"
        ),
        "token = scores.argmax(-1): USub left out": "the scores have two dimensions",
        "score = torch.where(score < 0, score * rules.repetition_penalty, score / rules.repetition_penalty)"
        ": Lt → LtE": "0 stays 0 by either way",
    },
}
"""File → mutant (its line, and what is changed) → why no test can kill it."""
LIBRARIES = (
    "numpy",
    "torch",
    "pyarrow.parquet",
    "pytest",
    "hypothesis",
    "pydantic",
    "yaml",
    "transformers",
    "timm",
    "ray",
)

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
}  # fmt: skip
KEPT_FIELDS = {"annotation", "returns", "decorator_list", "type_comment", "bases"}


def nodes(tree: ast.AST, inside: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """All nodes that may change, each with those around it; annotations, decorators and raised errors left out."""
    for name, value in ast.iter_fields(tree):
        if name in KEPT_FIELDS:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child, (*inside, tree)
                if not isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                    yield from nodes(child, (*inside, tree))


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A few words on each change of a node, and the node that takes its place."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if other := COMPARISONS.get(type(operator)):
                changed = copy.deepcopy(node)
                changed.ops[place] = other()
                yield f"{type(operator).__name__} → {other.__name__}", changed
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if other := OPERATORS.get(type(node.op)):
            changed = copy.deepcopy(node)
            changed.op = other()
            yield f"{type(node.op).__name__} → {other.__name__}", changed
    elif isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{type(node.op).__name__} → {type(changed.op).__name__}", changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield f"{type(node.op).__name__} left out", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        other_value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} → {other_value}", ast.Constant(other_value)
    elif isinstance(node, ast.IfExp):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield "condition negated", changed
    if isinstance(node, ast.If | ast.While):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield "condition negated", changed
    if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Continue | ast.Break):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield "statement left out", ast.Pass()
    elif isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
        yield "returns None", ast.Return(ast.Constant(None))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def mutants(source: str) -> list[tuple[int, str, str]]:
    """(line, description, source) of every mutant of a module."""
    tree = ast.parse(source)
    found = []
    for node, inside in list(nodes(tree)):
        if any(
            isinstance(around, ast.If) and ast.unparse(around.test) == "TYPE_CHECKING" for around in (*inside, node)
        ):
            continue
        for words, other in replacements(node):
            with swapped(inside[-1], node, ast.copy_location(other, node)):
                found.append((node.lineno, words, ast.unparse(ast.fix_missing_locations(tree))))
    return found


@contextlib.contextmanager
def swapped(parent: ast.AST, node: ast.AST, other: ast.AST) -> Iterator[None]:
    """Put another node in the place of one, for the time of the block."""
    for name, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, name, other)
            yield
            setattr(parent, name, node)
            return
        if isinstance(value, list) and any(child is node for child in value):
            place = next(i for i, child in enumerate(value) if child is node)
            value[place] = other
            yield
            value[place] = node
            return
    raise LookupError(f"{node} is not in {parent}")


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a source of ours."""

    def __init__(self, module: str, path: Path, source: str):
        self.module, self.path, self.source = module, path, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def start(path: Path, source: str, tests: list[str], output: Path) -> int:
    """Run the tests against a source of `path` in a child process; exit code 0 where they pass."""
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        import pytest

        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, Mutated(module, path, source))
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
        code = int(pytest.main([*options, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def judge(path: Path, tests: list[str], chosen: list[tuple[int, str, str]], *, workers: int, folder: Path) -> list[str]:
    """How each mutant ended: killed, timeout or lived."""
    began = time.monotonic()
    child = start(path, path.read_text(encoding="utf-8"), tests, folder / "unchanged.txt")
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise SystemExit(f"{path}: its tests fail without any change; see {folder / 'unchanged.txt'}")
    limit = 20 + 5 * (time.monotonic() - began)
    ends = ["lived"] * len(chosen)
    running: dict[int, tuple[int, float]] = {}
    waiting = list(range(len(chosen)))
    while waiting or running:
        while waiting and len(running) < workers:
            number = waiting.pop(0)
            running[start(path, chosen[number][2], tests, folder / f"{number}.txt")] = (number, time.monotonic())
        for child, (number, since) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ends[number] = "lived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
                del running[child]
            elif time.monotonic() - since > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                ends[number] = "timeout"
                del running[child]
        time.sleep(0.02)
    return ends


def report_on(path: Path, *, most: int, workers: int, folder: Path) -> dict[str, Any]:
    """Killed and lived mutants of a file."""
    name = str(path.relative_to(ROOT))
    inner = path.relative_to(ROOT / "megpt")
    tests = COVERED_BY.get(name, [f"tests/{inner.parent}/test_{inner.name}"])
    if missing := [file for file in (name, *tests) if not (ROOT / file).exists()]:
        raise SystemExit(f"no file {', '.join(missing)}: see COVERED_BY in {Path(__file__).name}")
    source = path.read_text(encoding="utf-8")
    every, lines = mutants(source), source.splitlines()
    chosen = every if len(every) <= most else sorted(random.Random(0).sample(every, most))
    began = time.monotonic()
    ends = judge(path, tests, chosen, workers=workers, folder=folder)
    known = EQUIVALENT.get(name, {})
    lived, equivalent = {}, {}
    for (line, words, _), end in zip(chosen, ends, strict=True):
        if end == "lived":
            mutant = f"{lines[line - 1].strip()}: {words}"
            (equivalent if mutant in known else lived)[f"{line}: {mutant}"] = known.get(mutant, "no test notices")
    killed = len(chosen) - len(lived) - len(equivalent)
    print(
        f"{name}: {killed} of {len(chosen)} killed ({killed / len(chosen):.1%}), {len(equivalent)} equivalent, "
        f"of {len(every)} mutants",
        flush=True,
    )
    for mutant in lived:
        print(f"  lived  {name}:{mutant}", flush=True)
    return {
        "mutants": len(every),
        "tried": len(chosen),
        "killed": killed,
        "timeouts": ends.count("timeout"),
        "share": round(killed / len(chosen), 3),
        "seconds": round(time.monotonic() - began),
        "tests": tests,
        "lived": [*lived],
        "equivalent": equivalent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="source files; all five by default")
    parser.add_argument("--most", type=int, default=160, help="mutants of one file, at most")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", help="where the report goes; benchmarks/results/mutants-DATE.json for all five")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    from record import record

    head = record("mutation.py", "pytest", "numpy", "torch", "transformers")
    head["command"] = " ".join(["python", "tests/mutation.py", *sys.argv[1:]])
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("transformers.models.llama.modeling_llama")
    files = [Path(name).resolve() for name in arguments.files or COVERED_BY]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        report = {
            str(path.relative_to(ROOT)): report_on(
                path, most=arguments.most, workers=arguments.workers, folder=Path(folder)
            )
            for path in files
        }
    killed, tried = (sum(file[key] for file in report.values()) for key in ("killed", "tried"))
    head |= {"tried": tried, "killed": killed, "share": round(killed / tried, 3)}
    output = arguments.output or (None if arguments.files else f"benchmarks/results/mutants-{head['date'][:10]}.json")
    if output:
        Path(output).write_text(json.dumps({**head, "files": report}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
