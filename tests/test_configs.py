"""The shipped configs.

- Each holds exactly the settings below besides the defaults, whatever files it extends: the paper's six runs the
  published ones, the demo and the runs on two cores their measured recipes, an ablation its recipe without the four
  parts.
- Their headers name themselves in the commands they show, and those commands are accepted.
- The paper's batches divide among the published number of GPUs.
- They name encoder weights that exist, and an architecture that can be planned offline.
"""

from __future__ import annotations

import re
from functools import reduce
from operator import getitem
from typing import Any

import pytest

from megpt.config import KNOWN_KEYS, SHIPPED, Config, load_config, shipped_names
from ray_jobs.__main__ import JOBS

MODES = ("shallow", "delta", "deep")
PAPER = {
    "cluster.gpus_per_worker": 1.0,
    "data.section": "findings",
    "data.max_views": 2,
    "model.vision": "swin_base_patch4_window7_224.ms_in1k",
    "model.image_size": 224,
    "train.precision": "bf16",
    "train.grad_clip": 0.0,
    "generate.precision": "bf16",
}
DATA = {
    "iu_xray": {
        "source": "data/iu_xray",
        "cluster.num_workers": 2,
        "data.cleaner": "r2gengpt-iu",
        "evaluate.dataset": "IU X-Ray (Open-i)",
        "train.epochs": 15.0,
        "train.max_report_tokens": 60,
        "train.val_every": 130.0,
        "train.save_every": 130,
    },
    "mimic_cxr": {
        "source": "data/mimic-cxr-jpg",
        "cluster.num_workers": 4,
        "data.reports": "data/mimic-cxr-reports.zip",
        "data.cleaner": "r2gengpt-mimic",
        "evaluate.dataset": "MIMIC-CXR",
        "train.epochs": 5.0,
        "train.global_batch_size": 32,
        "train.val_every": 0.5,
        "train.save_every": 500,
        "generate.min_new_tokens": 80,
        "generate.max_new_tokens": 120,
    },
}
MODE: dict[str, dict[str, Any]] = {
    "shallow": {"train.cache_features": True},
    "delta": {"model.mode": "delta", "model.lora_dropout": 0.1},
    "deep": {"model.mode": "deep"},
}
# Published settings that are megpt's defaults too.
PUBLISHED_DEFAULTS = {
    "model.llm": "meta-llama/Llama-2-7b-chat-hf",
    "model.fem": True,
    "model.doconv": True,
    "model.dynamic_prompt": True,
    "model.llm_lora": False,
    "model.lora_rank": 16,
    "model.lora_alpha": 16,
    "fit_prompts.num_clusters": 12,
    "train.lr": 1e-4,
    "train.min_lr": 1e-6,
    "train.warmup_steps": 0,
    "train.weight_decay": 0.01,
    "train.l2": 1e-5,
    "train.best_metric": "(BLEU_4 + CIDEr) / 2",
    "generate.num_beams": 3,
    "generate.repetition_penalty": 2.0,
    "generate.length_penalty": 2.0,
}
PHANTOM = {
    **{name: f"runs/demo/{name}" for name in ("studies", "prompts", "checkpoint", "predictions")},
    "source": "runs/demo/archive",
    "cluster.num_workers": 2,
    "language_model.hidden_size": 96,
    "language_model.num_layers": 3,
    "language_model.steps": 700,
    "language_model.lr": 5e-3,
    "prepare.image_size": 64,
    "model.vision": "resnet18",
    "model.vision_weights": "none",
    "model.vision_args": {
        "layers": [1, 1, 1, 1],
        "channels": [16, 32, 64, 96],
        "norm_layer": "groupnorm1",
        "output_stride": 16,
    },
    "model.image_size": 64,
    "model.llm": "runs/demo/llm",
    "model.mode": "deep",
    "fit_prompts.num_clusters": 4,
    "fit_prompts.terms": 3,
    "fit_prompts.max_studies": 2000,
    "train.global_batch_size": 32,
    "train.max_steps": 960,
    "train.lr": 3e-3,
    "train.min_lr": 2e-5,
    "train.warmup_steps": 50,
    "train.betas": [0.9, 0.98],
    "train.max_report_tokens": 80,
    "train.save_every": 240,
    "train.log_every": 25,
    "generate.repetition_penalty": 1.0,
    "generate.length_penalty": 1.0,
    "generate.min_new_tokens": 4,
    "generate.max_new_tokens": 80,
    "generate.shard_size": 150,
    "evaluate.bootstrap": 300,
}
WITHOUT_THE_PARTS = {
    "model.fem": False,
    "model.doconv": False,
    "model.dynamic_prompt": False,
    "train.l2": 0.0,
    "ablate.variants": {
        "fem": {"model.fem": True},
        "doconv": {"model.doconv": True},
        "dynamic_prompt": {"model.dynamic_prompt": True},
        "l2": {"train.l2": 1e-5},
        "all": {"model.fem": True, "model.doconv": True, "model.dynamic_prompt": True, "train.l2": 1e-5},
    },
}
ABLATION = {**PHANTOM, **WITHOUT_THE_PARTS, "evaluate.films": 100, "prompts": None}


def two_cores(name: str) -> dict[str, Any]:
    """What the runs on IU X-Ray without a GPU share, with their paths."""
    root = f"runs/{name}"
    return {
        **{key: f"{root}/{key}" for key in ("studies", "prompts", "checkpoint", "predictions")},
        "data.cleaner": "r2gen-iu",
        "data.max_views": 2,
        "prepare.films": "embed",
        "run.encoder": "packaged",
        "model.vision": "tf_efficientnet_lite0",
        "model.vision_weights": f"{root}/pretrained/tf_efficientnet_lite0.safetensors",
        "model.image_size": 224,
        "model.mode": "deep",
        "model.views": "concat",
        "fit_prompts.num_clusters": 6,
        "fit_prompts.terms": 4,
        "train.lr_vision": 2e-4,
        "train.warmup_steps": 40,
        "model.findings": True,
        "train.label_loss": 2.0,
        "train.save_every": 65,
        "train.keep": 1,
        "train.best_metric": "CIDEr",
        "generate.repetition_penalty": 1.0,
        "generate.min_new_tokens": 10,
        "generate.shard_size": 100,
    }


SMOLLM2 = {
    **two_cores("iu_xray_smollm2"),
    "run.language_model": "packaged",
    "model.llm": "runs/iu_xray_smollm2/pretrained/llm",
    "model.llm_lora": True,
    "model.lora_alpha": 32,
    "train.precision": "bf16",
    "train.epochs": 3.0,
    "train.lr": 5e-4,
    "train.val_every": 195.0,
    "generate.precision": "bf16",
}
SHORT = {
    **two_cores("iu_xray_short"),
    "run.language_model": "fitted",
    "model.llm": "runs/iu_xray_short/llm",
    "language_model.vocab_size": 1024,
    "language_model.hidden_size": 192,
    "language_model.steps": 400,
    "language_model.lr": 4e-3,
    "language_model.val_every": 50,
    "train.epochs": 3.0,
    "train.lr": 1e-3,
}
IU_ABLATION = {
    **SHORT,
    **WITHOUT_THE_PARTS,
    **dict.fromkeys(("prompts", "checkpoint", "predictions", "train.lr_vision")),
    "studies": "runs/iu_xray_smollm2/studies",
    "model.mode": "shallow",
    "model.llm": "runs/iu_xray_llm",
    "model.vision_weights": "runs/iu_xray_smollm2/checkpoint/model.safetensors",
    "model.findings": False,
    "train.label_loss": 0.0,
    "train.cache_features": True,
    "train.cache_folder": "runs/iu_xray_features",
    "train.epochs": 2.0,
    "evaluate.baselines": "texts",
}
OURS = {
    "phantom": PHANTOM,
    "ablation": ABLATION,
    "iu_xray_smollm2": SMOLLM2,
    "iu_xray_short": SHORT,
    "iu_xray_ablation": IU_ABLATION,
}
"""Configs with recipes of our own; the others are the paper's runs."""
STARTS = (("ablation", "demo"), ("iu_xray_ablation", "run"))


def expected(name: str) -> dict[str, Any]:
    """Key → value of every setting of a shipped config that is not a default."""
    if name in OURS:
        defaults = flat(Config())
        return {key: value for key, value in OURS[name].items() if value != defaults[key]}
    data, _, mode = name.rpartition("_")
    paths = {key: f"runs/{data}/{key}" for key in ("studies", "prompts")}
    own = {key: f"runs/{data}/{mode}/{key}" for key in ("checkpoint", "predictions")}
    return paths | own | PAPER | DATA[data] | MODE[mode]


def flat(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    values = {}
    for key in KNOWN_KEYS:
        values[key] = reduce(getitem, key.split("."), tree)
    return values


@pytest.mark.parametrize("name", shipped_names())
def test_settings(name: str) -> None:
    defaults = flat(Config())
    found = flat(load_config(name))
    assert {key: value for key, value in found.items() if value != defaults[key]} == expected(name)
    if name not in OURS:
        assert {key: found[key] for key in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS


@pytest.mark.parametrize("name", shipped_names())
def test_the_header_shows_commands_that_work(name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    commands = re.findall(r"\b(megpt [a-z-]+ .*?--config \S+(?: [\w.]+=\S+| --[\w-]+)*)", header)
    assert len(commands) >= (1 if name in OURS else 7)
    for command in commands:
        _, job, option, shown, *rest = command.rstrip("`,").split()
        assert (job in JOBS, option) == (True, "--config")
        assert shown == name or (name, job) in STARTS, "only what an ablation starts from is another's"
        config = load_config(shown, [word for word in rest if not word.startswith("--")])
        # The outputs that the header suggests are the inputs of the next job.
        if config.output and job not in ("evaluate", "ablate", "demo", "run"):
            paths = (config.studies, config.prompts, config.checkpoint, config.predictions, config.model.llm)
            assert config.output in paths


def test_batches_divide_among_the_published_gpus() -> None:
    for data in DATA:
        for mode in MODES:
            config = load_config(f"{data}_{mode}")
            assert config.train.global_batch_size == 8 * config.cluster.max_workers


def test_names_exist() -> None:
    import timm

    from megpt.model.cost.architectures import described

    for name in shipped_names():
        model = load_config(name).model
        if model.vision_weights == "pretrained":
            assert timm.is_model_pretrained(model.vision), name
        if name not in OURS:
            assert model.llm in described()


@pytest.mark.parametrize("name", shipped_names())
def test_a_lost_node_costs_a_stated_number_of_steps(name: str) -> None:
    assert load_config(name, []).train.save_every is not None
