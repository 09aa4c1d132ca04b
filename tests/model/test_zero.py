"""The L2 term under DeepSpeed ZeRO, on two processes with gloo.

- Stages 0, 1, 2 and 3 give one value of the penalty and of the cross-entropy, and one gradient of the projector. At
  stage 3 every parameter is really sharded (no small one is kept whole), so a read outside its module would give 0.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import films, labels_for

L2 = 0.05
TEXTS = ["The heart is normal in size.", "No focal consolidation."]


def measure(folder: str, own: str, stage: int) -> dict[str, Any]:
    """Penalty, cross-entropy and the projector's gradients of one step at one stage."""
    from deepspeed.utils import safe_get_full_grad

    from megpt.config import TrainConfig
    from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
    from megpt.training.engine import make_engine

    model = MeGPTForConditionalGeneration.from_pretrained(folder)
    processor = MeGPTProcessor.from_pretrained(folder)
    model.config.l2 = model.projector.l2 = L2
    model.config.loss_chunk = 4
    weight, gamma = model.projector.linear.weight, model.projector.norm.weight
    formula = L2 * (weight.square().sum() + gamma.square().sum()).item()
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    settings = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": zero}
    file = Path(own) / f"{stage}.json"
    file.write_text(json.dumps(settings))
    engine = make_engine(model, TrainConfig(deepspeed=str(file), global_batch_size=4, micro_batch_size=2))
    sharded = getattr(weight, "ds_status", None) is not None and weight.numel() == 0
    batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
    out = engine(**batch, labels=labels_for(processor, TEXTS))
    engine.backward(out.loss)
    grads = {name: safe_get_full_grad(p).clone() for name, p in model.projector.named_parameters()}
    result = {"l2": out.l2.item(), "loss": out.cross_entropy.item(), "formula": formula, "sharded": sharded}
    engine.destroy()
    return {**result, "grads": {name: grad.tolist() for name, grad in grads.items()}}


def work(rank: int, port: int, folder: str, own: str, pipe: Connection) -> None:
    """One rank: every stage in turn."""
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pipe.send([measure(folder, own, stage) for stage in range(4)])
    dist.destroy_process_group()


@pytest.mark.slow
def test_penalty_is_the_same_at_every_stage(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    own = [tmp_path / str(rank) for rank in range(2)]
    for folder in own:
        folder.mkdir()
    given = [(rank, port, str(tiny_checkpoint), str(own[rank]), ends[rank][1]) for rank in range(2)]
    ranks = [context.Process(target=work, args=arguments) for arguments in given]
    for rank, (_, sender) in zip(ranks, ends, strict=True):
        rank.start()
        sender.close()
    try:
        stages, _ = (here.recv() for here, _ in ends)  # a rank whose answer nobody takes does not end
    finally:
        for rank in ranks:
            rank.join(60)
            if rank.is_alive():
                rank.kill()
    assert [found["sharded"] for found in stages] == [False, False, False, True]
    for stage, found in enumerate(stages):
        assert found["l2"] == pytest.approx(found["formula"], rel=1e-6) and found["l2"] > 0.1, stage
        assert found["loss"] == pytest.approx(stages[0]["loss"], rel=1e-6), stage
        for name, grad in found["grads"].items():
            wanted = torch.tensor(stages[0]["grads"][name])
            assert torch.allclose(torch.tensor(grad), wanted, atol=1e-6), (stage, name)
