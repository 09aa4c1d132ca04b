"""The whole config of a run: its paths and sections, what the command line named, what a result depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from megpt.config.data import ClusterConfig, DataConfig, PrepareConfig
from megpt.config.demo import LanguageModelConfig, PhantomConfig, RunConfig
from megpt.config.generate import AblateConfig, EvaluateConfig, GenerateConfig
from megpt.config.model import ExportConfig, FitPromptsConfig, ImportConfig, ModelConfig
from megpt.config.reading import COMMAND_LINE, Layer, keys_of, read_layers, read_override
from megpt.config.serve import ServeConfig
from megpt.config.train import TrainConfig
from megpt.errors import InputError, did_you_mean
from megpt.settings import (
    Fingerprinted,
    Indifferent,
    Positive,
    Section,
    as_input_error,
    covers,
    error_key,
    leaves,
    merge,
    set_key,
)


@dataclass(frozen=True)
class Provenance:
    """Where the settings of a config came from. It is no part of the config's value: all of them are equal."""

    named: tuple[str, ...] = field(default=(), compare=False)
    """Keys named on the command line, in their order, the last mention of each."""
    rank: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Key → how late it was set: the number of its file, then its place on the command line."""


class Config(Section):
    """One run. Paths are the jobs' inputs and outputs; sections hold the settings of each."""

    seed: int = 42
    """Seed of everything that is drawn: splits, samples, weights, bootstrap resamples."""
    output: Annotated[str | None, Indifferent] = None
    """Folder or address (`s3://…`) that this job writes."""
    source: Annotated[str | None, Fingerprinted] = None
    """Archive of films: a folder, a manifest, or a studies/ table; like all inputs a path or an address."""
    studies: Annotated[str | None, Fingerprinted] = None
    """Output of `prepare`."""
    prompts: Annotated[str | None, Fingerprinted] = None
    """Output of `fit-prompts`."""
    checkpoint: Annotated[str | None, Fingerprinted] = None
    """Output of `train` or `import-checkpoint`."""
    predictions: Annotated[str | None, Fingerprinted] = None
    """Output of `generate`, or for `evaluate` anyone's reports: CSV, TSV, JSON, JSONL or Parquet."""
    references: Annotated[str | None, Fingerprinted] = None
    """Reports to score against: a file of the same kinds, a studies/ table, or R2Gen's or ReXrank's JSON."""
    training: Annotated[str | None, Fingerprinted] = None
    """Training reports for the constant baseline and `+unkN`, from the same kinds of file; else those of `studies`."""
    ids: Annotated[str | None, Indifferent] = None
    """Use these studies only: a file with one study id per line, or CSV or Parquet with a column `study_id`."""
    retry: Annotated[Literal["failed"] | None, Indifferent] = None
    """`failed` does the studies that failed in `output` again, into the same table."""
    limit: Positive | None = None
    """Use the first N studies only (`--limit N`)."""
    cluster: Annotated[ClusterConfig, Indifferent] = ClusterConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    model: ModelConfig = ModelConfig()
    fit_prompts: FitPromptsConfig = FitPromptsConfig()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    phantom: PhantomConfig = PhantomConfig()
    language_model: LanguageModelConfig = LanguageModelConfig()
    run: RunConfig = RunConfig()
    import_checkpoint: ImportConfig = ImportConfig()
    export: ExportConfig = ExportConfig()
    ablate: AblateConfig = AblateConfig()
    options: Annotated[dict[str, dict[str, Any]], Indifferent] = Field(default_factory=dict)
    """Settings that jobs of other packages declare, by job; on the command line `JOB.key=value` (docs/extending.md)."""
    serve: Annotated[ServeConfig, Indifferent] = ServeConfig()

    _provenance: Provenance = PrivateAttr(default_factory=Provenance)

    @property
    def named(self) -> tuple[str, ...]:
        """Settings named on the command line, in their order (the last mention of each)."""
        return self._provenance.named

    def identity(self, *keys: str) -> dict[str, Any]:
        """The values that a job's result depends on, as a nested dict ready for JSON.

        Args:
            keys: what the job reads: sections (`generate`), dotted keys (`data.section`) or top-level keys (`seed`).
                Settings that are marked where they are declared (`Indifferent`, `Fingerprinted`) are left out,
                so `config.identity(*READS)` is right for a job that depends on all it reads.

        Raises:
            ValueError: there is no such section or key.
        """
        tree = self.model_dump(mode="json")
        result: dict[str, Any] = {}
        for key in keys:
            settings = [leaf for leaf in SETTINGS if covers(key, leaf.key)]
            if not settings:
                raise ValueError(f"no section or setting {key!r}: {did_you_mean(key, KNOWN_KEYS)}")
            for leaf in settings:
                if leaf.in_identity:
                    *sections, name = leaf.key.split(".")
                    source, target = tree, result
                    for section in sections:
                        source, target = source[section], target.setdefault(section, {})
                    target[name] = source[name]
        return result

    def input_of(self, *keys: str) -> tuple[str, str]:
        """Of inputs that a job takes one of, the key and path of the one that was named last.

        The command line comes after all files, a later file after an earlier one; within one file the order of `keys`
        decides.

        Raises:
            InputError: none of them is set.
        """
        given = [key for key in keys if getattr(self, key) is not None]
        if not given:
            raise InputError(
                f"none of {', '.join(f'`{key}`' for key in keys)} is set",
                cause="this job needs one of them: "
                + "; ".join(f"`{key}`, {_SENTENCES[key].rstrip('.')}" for key in keys),
                next=f"add {keys[0]}=PATH to the command, or `{keys[0]}: PATH` to the config",
            )
        key = max(given, key=lambda key: (self._provenance.rank.get(key, -1), -keys.index(key)))
        return key, str(getattr(self, key))

    def with_one_input(self, *keys: str) -> Config:
        """A copy in which only the input that `input_of` chooses is set, for code that sees no command line."""
        chosen, _ = self.input_of(*keys)
        return self.updated(**{key: None for key in keys if key != chosen})

    def require(self, *keys: str) -> None:
        """Raise InputError for the first top-level path key that is not set."""
        for key in keys:
            if getattr(self, key) is None:
                raise InputError(
                    f"`{key}` is not set",
                    cause=f"this job needs it: {_SENTENCES[key]}",
                    next=f"add {key}=PATH to the command, or `{key}: PATH` to the config",
                )

    def updated(self, **values: Any) -> Config:
        """A copy with top-level values replaced, checked again."""
        return self._copy({**self._given(), **values}, [])

    def overridden(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted keys (`model.fem`) replaced, checked again. A mapping is merged into its section.

        Raises:
            InputError: an unknown key or a value out of range.
        """
        tree = self._given()
        for key, value in changes.items():
            set_key(tree, key, value, KNOWN_KEYS)
        return self._copy(tree, [Layer("the overrides", tree)])

    def to_yaml(self) -> str:
        """The whole config, as `--print-config` shows it and `--config` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def _given(self) -> dict[str, Any]:
        # Without defaults, so that a copy still knows which settings were given.
        return self.model_dump(mode="json", exclude_unset=True)

    def _copy(self, tree: dict[str, Any], layers: list[Layer]) -> Config:
        copy = _validated(tree, layers or [Layer("the config", tree)])
        copy._provenance = self._provenance
        return copy


SETTINGS = tuple(leaves(Config))
"""Every setting, in the order of declaration."""
KNOWN_KEYS = [leaf.key for leaf in SETTINGS]
"""Every dotted key a config may hold."""
_SENTENCES = {leaf.key: leaf.sentence for leaf in SETTINGS}


def load_config(configs: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config that files and `section.key=value` overrides describe; later ones win over earlier ones.

    Args:
        configs: YAML files by path, or shipped configs by name (`phantom`); one, several, or none for the defaults.
        overrides: as on the command line.

    Raises:
        InputError: no such file, not YAML, an unknown key, or a value out of range. The text names the key and
            the file that holds it.
    """
    names = [configs] if isinstance(configs, str | Path) else list(configs or ())
    layers = read_layers(names)
    tree: dict[str, Any] = {}
    rank: dict[str, int] = {}
    for number, layer in enumerate(layers):
        merge(tree, layer.tree, KNOWN_KEYS)
        rank |= dict.fromkeys(_keys_in(layer.tree), number)
    line: dict[str, Any] = {}
    named: dict[str, None] = {}
    for place, override in enumerate(overrides, start=len(layers)):
        key, value = read_override(override, SETTINGS)
        for setting in keys_of(key, value, SETTINGS):
            named.pop(setting, None)
            named[setting], rank[setting] = None, place
        set_key(line, key, value, KNOWN_KEYS)
        set_key(tree, key, value, KNOWN_KEYS)
    config = _validated(tree, [*layers, Layer(COMMAND_LINE, line)])
    config._provenance = Provenance(tuple(named), rank)
    return config


def _keys_in(tree: dict[str, Any]) -> list[str]:
    return [setting for key, value in tree.items() for setting in keys_of(key, value, SETTINGS)]


def _validated(tree: dict[str, Any], layers: Sequence[Layer]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        key = error_key(error, KNOWN_KEYS)
        where = next((layer.label for layer in reversed(layers) if _holds(layer.tree, key)), layers[-1].label)
        raise as_input_error(error, where=where, settings=SETTINGS) from None


def _holds(tree: Any, key: str) -> bool:
    first, _, rest = key.partition(".")
    if not isinstance(tree, dict):
        return True  # a value where a section belongs
    return first in tree and (not rest or _holds(tree[first], rest))
