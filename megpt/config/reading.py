"""Reading a config: YAML files, those they extend, and `section.key=value` from the command line, one over the other.

    layers = read_layers(["common.yaml", "mine.yaml"])

A file may begin with `extends: other.yaml` (a path relative to itself, or the name of a shipped config); its own
settings go over those of the other file. Later settings win: sections are merged, all other values replaced.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megpt.errors import InputError
from megpt.settings import Leaf, covers, find_shipped

SHIPPED = Path(__file__).parents[1] / "configs"
"""The folder of the shipped configs."""
EXTENDS = "extends"
COMMAND_LINE = "the command line"
EMPTY = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Layer:
    """The settings of one file, and the name to call it by in an error."""

    label: str
    tree: dict[str, Any]


def shipped_names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_layers(configs: Sequence[str | Path]) -> list[Layer]:
    """The files in their order, each behind those it extends. A file that several extend is read once.

    Raises:
        InputError: no such file, not YAML, a key that appears twice, or files that extend each other.
    """
    layers: dict[Path, Layer] = {}
    for config in configs:
        _read_chain(find_shipped(config, SHIPPED, ".yaml"), (), layers)
    return list(layers.values())


def _read_chain(path: Path, chain: tuple[Path, ...], layers: dict[Path, Layer]) -> None:
    resolved = path.resolve()
    if resolved in chain:
        raise InputError(
            f"{path} extends itself",
            where=" → ".join(p.name for p in (*chain[chain.index(resolved) :], resolved)),
            next=f"delete `{EXTENDS}` from one of these files",
        )
    if resolved in layers:
        return
    tree = read_yaml(path)
    parents = tree.pop(EXTENDS, None)
    parents = [parents] if isinstance(parents, str) else parents or []
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise InputError(
            f"{EXTENDS} = {parents!r}: it names a config, or a list of them",
            where=str(path),
            next=f"write `{EXTENDS}: FILE.yaml`, or the name of a shipped config: {', '.join(shipped_names())}",
        )
    for name in parents:
        # Beside the shipped configs comes last, so that a copy of one of them, edited elsewhere, still finds its base.
        places = (path.parent / name, find_shipped(name, SHIPPED, ".yaml"), SHIPPED / name)
        parent = next((place for place in places if place.is_file()), None)
        if parent is None:
            raise InputError(
                f"{path} extends {name!r}, which does not exist",
                where=f"neither {places[0]} nor a shipped config",
                next=f"give a path relative to {path.name}, or one of {', '.join(shipped_names())}",
            )
        _read_chain(parent, (*chain, resolved), layers)
    layers[resolved] = Layer(str(path), tree)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"no config at {path}",
            cause="it is neither a file nor the name of a shipped config",
            next=f"give the path of a YAML file, or one of {', '.join(shipped_names())}",
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML", cause=str(error).replace("\n", " ")) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(
            f"{path} holds {type(tree).__name__}, not a mapping",
            next="a config is made of `section:` and `key: value` lines, as those in configs/",
        )
    return {str(key): value for key, value in tree.items()}


def read_override(override: str, settings: Sequence[Leaf]) -> tuple[str, Any]:
    """One `section.key=value`: its key, and its value read as YAML, so that numbers and lists work.

    A setting that takes text takes it literally, so that `output=2026-11-26` is a folder and no date; quotes around
    it are removed, and an empty value, `~` or `null` unsets it.

    Raises:
        InputError: the text has no key or no `=`.
    """
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(f"cannot read {override!r}", cause="an override is section.key=value")
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if any(leaf.key == key and leaf.is_text for leaf in settings) and not quoted:
        return key, None if text in EMPTY else text
    try:
        return key, load_yaml(text)
    except yaml.YAMLError:
        return key, text


def keys_of(key: str, value: Any, settings: Sequence[Leaf]) -> list[str]:
    """The settings that an override names: `train={lr: 1}` names train.lr, `model.vision_args.depths=…` vision_args."""
    if isinstance(value, dict) and any(covers(key, leaf.key) and leaf.key != key for leaf in settings):
        return [name for below, inner in value.items() for name in keys_of(f"{key}.{below}", inner, settings)]
    return [leaf.key for leaf in settings if covers(leaf.key, key)]


class _Loader(yaml.SafeLoader):
    """YAML without two traps: a key that appears twice is refused, and 3e-4 is a number as in YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, Hashable):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.YAMLError(f"the key {key!r} appears twice, the second time in line {line}")
                seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """What a YAML document holds: plain values only.

    Raises:
        yaml.YAMLError: not YAML, or a value that YAML itself cannot hold (a 13th month).
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None
