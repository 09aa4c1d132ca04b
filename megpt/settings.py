"""How settings are declared, named and checked. Nothing here knows a setting; megpt/config lists them.

A setting is a field of a `Section`, with a type, a range, a default and the docstring beneath it. Unless it is marked,
a change of it changes the job's result:

    log_every: Annotated[Positive, Indifferent] = 10
    \"\"\"Steps between log lines.\"\"\"

The mark has to be the outermost `Annotated`; inside a union it has no effect, so that a slip leaves the setting in
the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from megpt.errors import InputError, did_you_mean

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Indifferent:
    """Marks a setting, or a whole section, that changes how fast or where a job runs but not its result."""


class Fingerprinted:
    """Marks the path of an input: its name does not change the result, its contents do.

    The job adds a fingerprint of the contents to its identity.
    """


class Section(BaseModel):
    """Keyword-only, immutable, strict about unknown keys, and without NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Leaf:
    """One setting: its dotted key, its declaration, and the marks on it or on a section around it."""

    key: str
    field: FieldInfo
    marks: tuple[Any, ...]

    @property
    def in_identity(self) -> bool:
        """Whether its value belongs to the identity of a job that reads it."""
        return Indifferent not in self.marks and Fingerprinted not in self.marks

    @property
    def sentence(self) -> str:
        """What it means: the docstring beneath its declaration, on one line."""
        return " ".join((self.field.description or "").split())

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        kind: Any = self.field.annotation
        return TypeAdapter(Annotated[kind, self.key, *self.field.metadata]).json_schema()

    @property
    def type(self) -> str:
        """The kinds of value it takes: `integer or null`."""
        return " or ".join(dict.fromkeys(kind for kind, _ in _kinds(self.schema)))

    @property
    def range(self) -> str:
        """The values it takes of those kinds: `> 0`; empty when all are allowed."""
        return "; ".join(dict.fromkeys(values for _, values in _kinds(self.schema) if values))

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it takes, if it takes words of a list, or true and false."""
        return tuple(dict.fromkeys(_words(self.schema)))

    @property
    def allowed(self) -> str:
        """Type and range together, as an error names them."""
        return " or ".join(f"{kind} {values}".strip() for kind, values in _kinds(self.schema))

    @property
    def default(self) -> Any:
        """Its value when nobody sets it."""
        return self.field.get_default(call_default_factory=True)

    @property
    def is_text(self) -> bool:
        """Whether its value is text, or text or nothing."""
        return self.field.annotation in (str, str | None)


def leaves(model: type[BaseModel], prefix: str = "", marks: tuple[Any, ...] = ()) -> Iterator[Leaf]:
    """Every setting of a config of this type, in the order of declaration."""
    for name, info in model.model_fields.items():
        all_marks = (*marks, *(mark for mark in info.metadata if mark in (Indifferent, Fingerprinted)))
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from leaves(section, f"{prefix}{name}.", all_marks)
        else:
            yield Leaf(prefix + name, info, all_marks)


def _kinds(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Type and range of each alternative in a JSON schema."""
    if "anyOf" in schema:
        for alternative in schema["anyOf"]:
            yield from _kinds(alternative)
    elif "enum" in schema or "const" in schema:
        choices = [str(choice) for choice in schema.get("enum", [schema.get("const")])]
        yield ("one of", ", ".join(choices)) if len(choices) > 1 else ("the word", choices[0])
    elif schema.get("type") == "array":
        length = f"{len(schema['prefixItems'])} × " if "prefixItems" in schema else ""
        for kind, values in _kinds(schema["prefixItems"][0] if length else schema["items"]):
            yield f"list of {length}{kind}", values
    else:
        kind = {"string": "text", "boolean": "true or false", "object": "mapping"}
        yield kind.get(schema["type"], schema["type"]), _bounds(schema)


def _words(schema: dict[str, Any]) -> Iterator[str]:
    """The words of each alternative in a JSON schema."""
    for alternative in schema.get("anyOf", [schema]):
        if "anyOf" in alternative:
            yield from _words(alternative)
        elif alternative.get("type") == "boolean":
            yield from ("true", "false")
        else:
            yield from map(str, alternative.get("enum", [alternative["const"]] if "const" in alternative else []))


def _bounds(schema: dict[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return " and ".join(f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema)


def identity_of(section: Section) -> dict[str, Any]:
    """The values of a flat section that a job's result depends on, ready for JSON."""
    values = section.model_dump(mode="json")
    return {leaf.key: values[leaf.key] for leaf in leaves(type(section)) if leaf.in_identity}


def read_section(kind: type[Section], values: Mapping[str, Any], *, prefix: str) -> Any:
    """The settings that an extension declares, from a mapping in a config.

    Args:
        prefix: what stands before a key where a user writes it: `data.options.`.

    Raises:
        InputError: an unknown key or a value out of range; the error names the whole key.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise as_input_error(
            error, where=f"settings of {kind.__name__}", settings=list(leaves(kind, prefix)), prefix=prefix
        ) from None


def covers(name: str, key: str) -> bool:
    """Whether `name`, a section or a key, means the setting `key`."""
    return key == name or key.startswith(f"{name}.")


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old → new` for each leaf in which two nested dicts differ."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} → {after!r}")
    return lines


def sections_of(known: Sequence[str]) -> set[str]:
    """Every name that a key of `known` has in front of a dot."""
    return {key.rpartition(".")[0] for key in known if "." in key}


def merge(tree: dict[str, Any], changes: dict[str, Any], known: Sequence[str]) -> None:
    """Put the settings of `changes` over those of `tree`: sections are merged, all other values replaced."""
    sections = sections_of(known)
    for key, value in changes.items():
        if key in sections and value is None:  # `train:` with nothing under it
            tree.setdefault(key, {})
        elif key in sections and isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] = {**tree[key], **value}
        else:
            tree[key] = dict(value) if isinstance(value, dict) else value


def set_key(tree: dict[str, Any], key: str, value: Any, known: Sequence[str]) -> None:
    """Set a dotted key in a nested dict; a mapping given for a section is merged into it."""
    *parents, leaf = key.split(".")
    if not parents and isinstance(value, dict):
        merge(tree, {key: value}, known)
        return
    for name in parents:
        below = {} if tree.get(name) is None else tree[name]
        if not isinstance(below, dict):
            raise InputError(f"unknown key {key!r}", where="the command line", next=did_you_mean(key, list(known)))
        # Copied, so that a tree that shares this part keeps its own value.
        tree[name] = dict(below)
        tree = tree[name]
    tree[leaf] = value


def find_shipped(name: str | Path, folder: Path, suffix: str) -> Path:
    """The file that a user means: a path where it exists, else the file of that name in megpt's own `folder`.

    Returns the path as given when neither is there, for the caller's error.
    """
    path = Path(name)
    if not path.is_file() and path.name == str(name):
        shipped = folder / (path.name if path.suffix == suffix else path.name + suffix)
        if shipped.is_file():
            return shipped
    return path


def as_input_error(error: ValidationError, where: str, settings: Sequence[Leaf], prefix: str = "") -> InputError:
    """The first of pydantic's complaints, as the screen a user can act on."""
    known = [leaf.key for leaf in settings]
    first = error.errors(include_url=False)[0]
    key, value = prefix + error_key(error, [name.removeprefix(prefix) for name in known]), first.get("input")
    if first["type"] == "extra_forbidden" and not known:
        return InputError(f"unknown key {key!r}", cause="nothing here has settings of its own", next=f"leave {key} out")
    if first["type"] == "extra_forbidden":
        return InputError(f"unknown key {key!r}", where=where, next=did_you_mean(key, known))
    if first["type"] == "model_type":
        return InputError(
            f"{key} = {value!r}: {key} is a section, not a value",
            where=where,
            next=f"set one of its keys: {', '.join(k for k in known if k.startswith(key + '.'))}",
        )
    message = first["msg"].removeprefix("Value error, ")
    for leaf in settings:
        if leaf.key == key:
            return InputError(
                f"{key} = {value!r}: {message}", where=where, next=f"{key} takes {leaf.allowed}. {leaf.sentence}"
            )
    # A rule between settings names their values itself; the whole section would bury them.
    return InputError(f"{key or 'config'}: {message}", where=where)


def error_key(error: ValidationError, known: Sequence[str]) -> str:
    """The dotted key that the first of pydantic's complaints is about."""
    first = error.errors(include_url=False)[0]
    parts, value = [str(part) for part in first["loc"]], first.get("input")
    # Below a setting's own key a location holds the names of union members, which no user wrote.
    for length in range(1, len(parts)):
        if ".".join(parts[:length]) in known:
            return ".".join(parts[:length])
    key = ".".join(parts)
    if first["type"] == "extra_forbidden" and isinstance(value, dict) and value:
        return f"{key}.{next(iter(value))}"  # a mistyped section: the key below says more than its name
    return key
