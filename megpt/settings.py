"""How settings are read and checked: YAML, dotted overrides, and errors that name the field and the nearest key.

Nothing here knows a setting; megpt/config.py lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from megpt.errors import InputError, did_you_mean


class Section(BaseModel):
    """Keyword-only, immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that a config of this type may hold."""
    keys = []
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += known_keys(section, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old → new` for each leaf in which two nested dicts differ."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            lines += difference(was, now, f"{prefix}{key}.")
        elif was != now:
            lines.append(f"{prefix}{key}: {was!r} → {now!r}")
    return lines


def read_yaml(path: Path, known: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file; a section with nothing under it is an empty one."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        near = [str(p) for p in sorted(Path("configs").glob("*.yaml"))]
        raise InputError(f"no config at {path}", next=did_you_mean(str(path), near) if near else None) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML", cause=str(error).replace("\n", " ")) from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}, not a mapping", next="see configs/phantom.yaml")
    sections = {key.partition(".")[0] for key in known if "." in key}
    return {str(key): {} if value is None and key in sections else value for key, value in tree.items()}


def apply_override(tree: dict[str, Any], override: str, known: list[str]) -> None:
    """Set one `section.key=value` in a nested dict; the value is read as YAML, so numbers and lists work."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(f"cannot read {override!r}", cause="an override is section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):
        value = _number(value)
    set_key(tree, key, value, known)


def set_key(tree: dict[str, Any], key: str, value: Any, known: list[str]) -> None:
    """Set a dotted key in a nested dict."""
    *sections, leaf = key.split(".")
    for name in sections:
        if tree.get(name) is None:  # `train:` with nothing under it
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise InputError(f"unknown key {key!r}", where="the command line", next=did_you_mean(key, known))
    tree[leaf] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 3e-4 as a string; people mean a number."""
    try:
        return float(text) if any(c in "eE" for c in text) and any(c.isdigit() for c in text) else text
    except ValueError:
        return text


def as_input_error(error: ValidationError, where: str, known: list[str]) -> InputError:
    """The first of pydantic's complaints, as the screen a user can act on."""
    first = error.errors(include_url=False)[0]
    key, value = ".".join(_field_path([str(part) for part in first["loc"]], known)), first.get("input")
    if first["type"] == "extra_forbidden":
        if isinstance(value, dict) and value:  # a mistyped section: what stands in it says more than its name
            key = f"{key}.{next(iter(value))}"
        return InputError(f"unknown key {key!r}", where=where, next=did_you_mean(key, known))
    if first["type"] == "model_type":
        return InputError(
            f"{key} = {value!r}: {key} is a section, not a value",
            where=where,
            next=f"set one of its keys: {', '.join(k for k in known if k.startswith(key + '.'))}",
        )
    message = first["msg"].removeprefix("Value error, ")
    return InputError(f"{key or 'config'} = {value!r}: {message}", where=where)


def _field_path(parts: list[str], known: list[str]) -> list[str]:
    """A pydantic location without the names of union members, which no user wrote."""
    for length in range(1, len(parts)):
        if ".".join(parts[:length]) in known:
            return parts[:length]
    return parts
