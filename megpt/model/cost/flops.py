"""The cost of one study: FLOPs of each part, and the bytes that autograd keeps, counted on the meta device.

The real modules run on tensors without data, under torch's own FlopCounterMode, so that no architecture is described
a second time and any encoder and language model can be counted. A multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megpt.model import lora
from megpt.model.language import vocabulary_head
from megpt.model.loss import chunked_cross_entropy


@dataclass(frozen=True)
class Cost:
    """FLOPs of the forward and the backward pass, and bytes kept between them."""

    forward: int = 0
    backward: int = 0
    kept: int = 0

    @property
    def step(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Lengths:
    """Lengths of one study: films, text tokens of the prompt, report tokens with the end token."""

    views: int
    text: int
    report: int


def measure(run: Callable[[], Tensor], module: nn.Module) -> Cost:
    """The cost of `run`, a forward pass through `module`, and of its backward pass if the output has a gradient.

    Kept bytes count the storage of each saved tensor once, without the weights of the module, and without the T × T
    weights of attention, which fused kernels do not keep.
    """
    weights = {p.untyped_storage()._cdata for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        square = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2] and tensor.is_floating_point()
        if not square and (key := tensor.untyped_storage()._cdata) not in weights:
            # Holding the tensor prevents its storage, and so its key, from being reused.
            kept[key] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()
        forward = counter.get_total_flops()
        if out.requires_grad:
            out.backward(torch.empty_like(out))
    total = counter.get_total_flops()
    return Cost(forward, total - forward, sum(t.untyped_storage().nbytes() for t in kept.values()))


def study_costs(model: Any, lengths: Lengths, *, chunk: int) -> dict[str, Cost]:
    """The cost of each part of a MeGPT model on the meta device, for one study.

    Keys: vision, prompt encoder (if choosing prompts needs a pass of its own), each feature module by its name,
    projector (without these), language model.
    """
    weight = model.projector.linear.weight
    meta = {"device": "meta", "dtype": weight.dtype}
    size = model.vision.image_size
    films = torch.empty(lengths.views, 3, size, size, **meta)
    shallow = model.config.mode == "shallow"
    with torch.set_grad_enabled(not shallow):
        vision = measure(lambda: model.vision(films), model.vision)
    costs = {"vision": vision}
    if model.bank.centroids is not None and not shallow:
        costs["prompt encoder"] = Cost(forward=frozen_forward(model, films))
    rows = lengths.views if model.config.views == "concat" else 1
    height, width = model.config.grid
    maps = torch.empty(rows, model.vision.channels, height, width, requires_grad=not shallow, **meta)
    costs |= _projection(model.projector, maps)
    visual = rows * height * width
    costs["language model"] = language_cost(model.language_model, lengths.text + visual, lengths.report, chunk, meta)
    return costs


def frozen_forward(model: Any, films: Tensor) -> int:
    """FLOPs of the pass that chooses the prompt, through the encoder that the prompts were fitted with."""
    encoder = model.prompt_encoder or model.vision
    with torch.no_grad(), lora.adapters_off(model.vision.trunk):
        return measure(lambda: encoder(films), encoder).forward


def _projection(projector: Any, maps: Tensor) -> dict[str, Cost]:
    """Each feature module, and the rest of the projector."""
    parts: dict[str, Cost] = {}
    x, side = maps, projector.side
    if side:  # the reference's reshape, after the linear layer: (B, C, h, w) → (B, √H, h·w, √H)
        x = maps.new_empty(len(maps), side, maps[0, 0].numel(), side).requires_grad_()
    for name, module in projector.enhancer.named_children() if projector.enhancer else ():
        parts[name] = measure(partial(module, x), module)
        # The gradient has to pass through a module that follows another.
        x = x.detach().requires_grad_()
    whole = measure(lambda: projector(maps)[0], projector)
    forward, backward, kept = (
        max(0, getattr(whole, key) - sum(getattr(part, key) for part in parts.values()))
        for key in ("forward", "backward", "kept")
    )
    return {**parts, "projector": Cost(forward, backward, kept)}


def language_cost(model: Any, prompt: int, report: int, chunk: int, meta: dict[str, Any]) -> Cost:
    """Teacher forcing over a prompt of T tokens and a report of L, with logits only at the report's positions."""
    hidden_size = model.get_input_embeddings().embedding_dim
    length = prompt + report
    embeds = torch.empty(1, length, hidden_size, requires_grad=True, **meta)
    # Four dimensions: transformers uses such a mask unchanged; it cannot inspect the values of a meta tensor.
    mask = torch.empty(1, 1, length, length, **meta)
    targets = torch.empty(report, device="meta", dtype=torch.long)
    head = vocabulary_head(model)

    def run() -> Tensor:
        hidden = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return chunked_cross_entropy(hidden[0, prompt - 1 : -1], targets, head, chunk=chunk)

    cost = measure(run, model)
    # The logits of one chunk in the model's format and in float32, and their gradient.
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return replace(cost, kept=cost.kept + min(chunk, report) * vocabulary * (meta["dtype"].itemsize + 8))


def generation_flops(costs: dict[str, Cost], lengths: Lengths, visual: int, *, new_tokens: int, beams: int) -> int:
    """Upper bound for generating one report: films once, prefill once, `new_tokens` steps of every beam.

    A token of prefill and of a step is taken to cost its share of the forward pass in training. They differ in how far
    attention looks back, which is 1 % of the work of a 7 B model at these lengths.
    """
    each = costs["language model"].forward / (lengths.text + visual + lengths.report)
    films = sum(cost.forward for part, cost in costs.items() if part != "language model")
    return films + int(each * (lengths.text + visual + beams * new_tokens))
