"""Losses, rates and memory between two log rows; nothing here waits for the device until a row is due."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megpt.errors import MegptError
from megpt.training.batches import Loader

# Dense bf16 FLOP/s by a part of the device's name, from the vendors' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


PARTS = {"cross_entropy": "cross-entropy", "l2": "L2 term", "label_loss": "label loss"}
"""The parts of the loss, by figure; the last one only in a run with `train.label_loss`."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Meter:
    """Collects the losses of steps, and turns them into the figures of `megpt.training.log.FIGURES`."""

    def __init__(self, device: torch.device, loader: Loader):
        self.device, self.loader = device, loader
        self.peak = peak_flops(device)
        self.last: dict[str, float] = {}
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._rate = 0.0
        self._flops_per_study: float | None = None
        self._began, self._waited = time.monotonic(), 0.0

    def add(self, step: int, losses: Tensor, rate: float) -> None:
        """A step's losses of this worker, as many of `PARTS` as it has, on the device, and its learning rate."""
        self._steps.append(step)
        self._losses.append(losses)
        self._rate = rate

    def check_finite(self) -> None:
        """Average the losses over the workers.

        Raises:
            MegptError: one of them is not a number. Every worker raises alike.
        """
        if not self._losses:
            return
        table = torch.stack(self._losses)  # (steps, 2 or 3)
        dist.all_reduce(table)
        table /= dist.get_world_size()
        rows = table.tolist()
        for step, parts in zip(self._steps[-len(rows) :], rows, strict=True):
            if not math.isfinite(sum(parts)):
                named = ", ".join(f"{name} {part}" for name, part in zip(PARTS.values(), parts, strict=False))
                raise MegptError(
                    f"the loss is {sum(parts)} at step {step}",
                    where=f"{named}, learning rate {self._rate:.1e}",
                    cause="the learning rate is too high, or the weights of the encoder or language model hold NaN",
                    next="lower train.lr or train.grad_clip, or add train.warmup_steps, with a new output=PATH",
                )
        self.last = {"loss": sum(rows[-1]), **dict(zip(PARTS, rows[-1], strict=False)), "lr": self._rate}
        self._losses = []

    def figures(self, engine: Any) -> dict[str, float]:
        """The figures since the last call. A collective; raises as `check_finite` does."""
        self.check_finite()
        seconds = max(time.monotonic() - self._began, 1e-9)
        figures = dict(self.last)
        norm = engine.get_global_grad_norm()
        if norm is not None:
            figures["grad_norm"] = float(norm)
        figures["studies_per_s"] = sum(len(self.loader.order.batch(step)) for step in self._steps) / seconds
        figures["tokens_per_s"] = sum(map(self.loader.num_tokens, self._steps)) / seconds
        if self.peak and self._flops_per_study:
            achieved = self._flops_per_study * figures["studies_per_s"]
            figures["mfu"] = achieved / (self.peak * dist.get_world_size())
        figures["memory_gib"] = self._memory() / 2**30
        figures["data_wait"] = (self.loader.waited_s - self._waited) / seconds
        self.last = figures
        self._steps = []
        self.restart_clock()
        return dict(figures)

    @contextlib.contextmanager
    def count_flops(self, studies: int) -> Iterator[None]:
        """Around the first whole forward and backward pass: counts its matrix arithmetic, where the peak is known.

        With activation checkpointing the count is an upper bound: it includes the share that is computed twice.
        """
        if self.peak is None or self._flops_per_study is not None or not studies:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_study = counter.get_total_flops() / studies

    def restart_clock(self) -> None:
        """Leave out the time since the last row (a validation is not training)."""
        self._began, self._waited = time.monotonic(), self.loader.waited_s

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
