"""DeepSpeed JSON filled from the config.

- every shipped file is plain JSON that DeepSpeed's own config accepts once it is filled
- batch sizes, precision, clipping and the optimizer's figures come from `train.*`
- "auto" is filled too; any other value that contradicts the config is an error that names file, key and setting
- batch sizes that do not divide, a missing file, one that is no JSON, a scheduler, another optimizer: exact texts
"""

from __future__ import annotations

import json

import pytest

from megpt.config import TrainConfig
from megpt.errors import InputError
from megpt.training.deepspeed import SHIPPED, check_batch_sizes, deepspeed_settings


def test_shipped_files_are_what_deepspeed_takes():
    from deepspeed.runtime.config import DeepSpeedConfig

    names = {path.stem for path in SHIPPED.glob("*.json")}
    assert names == {"zero0", "zero1", "zero2", "zero3", "offload"}
    for name in names:
        train = TrainConfig(deepspeed=str(SHIPPED / f"{name}.json"), global_batch_size=8, precision="bf16")
        stage = DeepSpeedConfig(deepspeed_settings(train, world_size=1)).zero_optimization_stage
        assert stage == {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "offload": 2}[name]


def test_what_megpt_owns_is_filled():
    train = TrainConfig(zero_stage=1, global_batch_size=24, micro_batch_size=2, lr=3e-4, grad_clip=0.5)
    settings = deepspeed_settings(train, world_size=3)
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["train_batch_size"] == 24
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": False} and settings["zero_optimization"]["stage"] == 1
    assert settings["optimizer"]["params"]["lr"] == 3e-4


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def refused(train, world_size=2):
    with pytest.raises(InputError) as raised:
        deepspeed_settings(train, world_size=world_size)
    return str(raised.value)


def test_auto_and_agreement_are_fine(file):
    path = file({"train_batch_size": "auto", "gradient_clipping": 1.0, "zero_optimization": {"stage": 3}})
    settings = deepspeed_settings(TrainConfig(deepspeed=path), world_size=2)
    assert settings["train_batch_size"] == 16 and settings["zero_optimization"]["stage"] == 3


def test_a_conflict(file):
    path = file({"bf16": {"enabled": True}})
    assert refused(TrainConfig(deepspeed=path)) == (
        f"{path} says bf16.enabled = True, but train.precision means False\n"
        f"  where: {path}\n"
        "  cause: megpt fills bf16.enabled from its own config\n"
        '  next:  delete bf16.enabled from the file (or write "auto"), and set train.precision'
    )


@pytest.mark.parametrize(
    "content, text",
    [
        ({"scheduler": {"type": "WarmupLR"}}, "sets `scheduler`"),
        ({"optimizer": {"type": "Lamb"}}, "sets optimizer.type = 'Lamb'"),
        ({"train_batch_size": 7}, "says train_batch_size = 7, but train.global_batch_size means 16"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds list, not an object"),
    ],
)
def test_what_is_refused(file, content, text):
    assert text in refused(TrainConfig(deepspeed=file(content)))


def test_a_missing_file():
    assert refused(TrainConfig(deepspeed="nowhere.json")).startswith("no DeepSpeed config at nowhere.json\n")


def test_batch_sizes_that_do_not_divide():
    with pytest.raises(InputError) as raised:
        check_batch_sizes(TrainConfig(global_batch_size=16), 3)
    assert str(raised.value) == (
        "train.global_batch_size = 16 cannot be divided among 3 workers\n"
        "  cause: each worker takes an equal share of every step\n"
        "  next:  set train.global_batch_size=18, or another cluster.num_workers"
    )
    with pytest.raises(InputError) as raised:
        check_batch_sizes(TrainConfig(global_batch_size=16, micro_batch_size=3), 2)
    assert str(raised.value) == (
        "train.micro_batch_size = 3 does not divide a worker's share of 8\n"
        "  where: train.global_batch_size = 16 over 2 workers\n"
        "  cause: a step is a whole number of forward passes on each worker\n"
        "  next:  set train.micro_batch_size to a divisor of 8"
    )
    check_batch_sizes(TrainConfig(global_batch_size=16, micro_batch_size=4), 2)
