"""Every setting, once.

    config = load_config("phantom", ["output=runs/demo", "train.max_steps=100"])
    config.identity("train", "data.section", "seed")

A run is described by YAML files plus dotted overrides (`train.lr=3e-4`), all checked here. Each setting is declared in
one place with its type, its range, its default and a sentence; whether it changes a job's result is part of the
declaration (`Annotated[…, Indifferent]`). docs/config.md, the JSON schema for editors, `megpt JOB --help` and the error
screens are made from these declarations.
"""

from megpt.config.data import ClusterConfig, DataConfig, PrepareConfig
from megpt.config.demo import LanguageModelConfig, PhantomConfig, RunConfig
from megpt.config.generate import AblateConfig, ColumnsConfig, EvaluateConfig, GenerateConfig
from megpt.config.model import ExportConfig, FitPromptsConfig, ImportConfig, ModelConfig
from megpt.config.reading import SHIPPED, shipped_names
from megpt.config.reference import help_text, json_schema, refuse_unread
from megpt.config.run import KNOWN_KEYS, Config, load_config
from megpt.config.serve import ServeConfig
from megpt.config.train import TrainConfig
from megpt.settings import Fingerprinted, Fraction, Indifferent, Positive

__all__ = [
    "KNOWN_KEYS",
    "SHIPPED",
    "AblateConfig",
    "ClusterConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "Fingerprinted",
    "FitPromptsConfig",
    "Fraction",
    "GenerateConfig",
    "ImportConfig",
    "Indifferent",
    "LanguageModelConfig",
    "ModelConfig",
    "PhantomConfig",
    "Positive",
    "PrepareConfig",
    "RunConfig",
    "ServeConfig",
    "TrainConfig",
    "help_text",
    "json_schema",
    "load_config",
    "refuse_unread",
    "shipped_names",
]
