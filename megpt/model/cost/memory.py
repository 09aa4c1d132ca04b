"""Memory of one training GPU at each ZeRO stage, by the accounting of DeepSpeed's own estimators.

P parameters of which T are trained, N GPUs. Bytes per parameter in bf16 (in fp32):

| | stage 0 | 1 | 2 | 3 |
| --- | --- | --- | --- | --- |
| weights, 2 (4) | P | P | P | P / N, and the largest layer gathered twice |
| gradients, 2 (4) | T | T | T / N | T / N |
| fp32 gradients of the step, 4 (0) | T | T / N | T / N | T / N |
| fp32 master weights, 4 (0), and Adam's two moments, 8 (8) | T | T / N | T / N | T / N |

Activations are what autograd keeps of one micro batch; weights and buffers of the CUDA context, of the allocator's
fragmentation and of NCCL (1–2 GB together) are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def states(self) -> int:
        """All but the activations: what DeepSpeed calls model states."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.states + self.activations


def memory_per_gpu(
    stage: int, *, parameters: int, trained: int, gpus: int, precision: str, largest_layer: int, activations: int
) -> Memory:
    """Bytes on each of `gpus` GPUs.

    Args:
        parameters: P. trained: T ≤ P. largest_layer: parameters of the largest module that is gathered at once.
        precision: bf16 (with fp32 master weights) or fp32.
        activations: bytes that autograd keeps for one micro batch.
    """
    half = precision == "bf16"
    width = 2 if half else 4
    shard = {0: (1, 1, 1), 1: (1, 1, gpus), 2: (1, gpus, gpus), 3: (gpus, gpus, gpus)}[stage]
    weights = width * parameters // shard[0]
    if stage == 3:
        weights += 2 * width * largest_layer
    gradients = width * trained // shard[1] + (4 * trained // shard[2] if half else 0)
    optimizer = (12 if half else 8) * trained // shard[2]
    return Memory(weights, gradients, optimizer, activations)
