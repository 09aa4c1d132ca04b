"""The cost of a training run, before anything is downloaded: `megpt train --config FILE --dry-run`.

    console.print(estimate(config).render())

The model is built on the meta device from its architecture alone: no weights, no tokenizer, no GPU, and no network if
megpt describes the language model itself (megpt/model/cost/architectures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn

from megpt.config import Config
from megpt.model.configuration import MeGPTConfig
from megpt.model.cost.architectures import language_model_config
from megpt.model.cost.flops import Cost, Lengths, generation_flops, study_costs
from megpt.model.cost.memory import STAGES, Memory, memory_per_gpu
from megpt.model.findings import TYPICAL_TOKENS
from megpt.model.modeling import MeGPTForConditionalGeneration
from megpt.model.prompts import INSTRUCTION, PromptBank

VIEWS = 2
"""Films of a study if `data.max_views` sets no limit: IU X-Ray has two, MIMIC-CXR 1.7 on average."""
PROMPT_TOKENS = 64
"""Text tokens of a prompt: about 35 for the frame and the instruction, the rest for a cluster's terms."""
GIB = 2**30
LABELS = {"fem": "FEM", "doconv": "DOConv"}


@dataclass(frozen=True)
class Part:
    """One part of the model: its parameters, how many of them are trained, and its cost per study."""

    name: str
    parameters: int
    trained: int
    cost: Cost


@dataclass(frozen=True)
class Estimate:
    """The cost of a run: FLOPs per study, bytes per GPU."""

    models: tuple[str, str]
    parts: tuple[Part, ...]
    lengths: Lengths
    visual_tokens: int
    generation: int
    gpus: int
    micro_batch: int
    precision: str
    stage: int | None
    memory: dict[int, Memory]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass of one study in training."""
        return sum(part.cost.forward for part in self.parts)

    @property
    def step(self) -> int:
        """FLOPs of one study in a training step, forward and backward."""
        return sum(part.cost.step for part in self.parts)

    def render(self) -> RenderableType:
        """Tables for a terminal."""
        return Group(self._parts_table(), "", self._memory_table(), "", *self._assumptions())

    def _parts_table(self) -> Table:
        table = Table(
            title=f"{self.models[0]} + {self.models[1]}: parameters, and FLOPs per study", title_justify="left"
        )
        table.add_column("part")
        for column in ("parameters", "trained", "forward", "training step"):
            table.add_column(column, justify="right")
        for part in self.parts:
            table.add_row(
                part.name,
                f"{part.parameters:,}",
                f"{part.trained:,}",
                flops_text(part.cost.forward),
                flops_text(part.cost.step),
            )
        table.add_section()
        table.add_row(
            "total", f"{self.parameters:,}", f"{self.trained:,}", flops_text(self.forward), flops_text(self.step)
        )
        return table

    def _memory_table(self) -> Table:
        table = Table(title=f"GiB on each of {self.gpus} GPUs, {self.precision}", title_justify="left")
        for column in (
            "ZeRO stage",
            "weights",
            "gradients",
            "optimizer",
            f"activations of {self.micro_batch} studies",
            "total",
        ):
            table.add_column(column, justify="right")
        for stage, memory in self.memory.items():
            amounts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
            chosen = stage == self.stage
            cells = [f"{amount / GIB:.2f}" for amount in amounts]
            table.add_row(f"→ {stage}" if chosen else str(stage), *cells, style="bold" if chosen else None)
        return table

    def _assumptions(self) -> list[str]:
        n = self.lengths
        return [
            f"a study: {n.views} films, {self.visual_tokens} visual and {n.text} prompt tokens (assumed), "
            f"{n.report} report tokens",
            f"a report when generating: at most {flops_text(self.generation)}",
            "gradients: as computed, plus float32 ones for the step; optimizer: float32 weights (bf16 only) and two "
            "moments",
            "not counted: 1–2 GiB of CUDA context, communication buffers and fragmentation",
        ]


def estimate(config: Config) -> Estimate:
    """Estimate the cost of a training run.

    Raises:
        InputError: an unknown encoder or language model, or widths that do not fit.
    """
    model = skeleton(config)
    views = config.data.max_views or VIEWS
    prompt = PROMPT_TOKENS + len(config.model.context) * config.model.context_tokens
    prompt += TYPICAL_TOKENS if config.model.findings else 0
    lengths = Lengths(views, prompt, config.train.max_report_tokens + 1)
    costs = study_costs(model, lengths, chunk=config.train.loss_chunk)
    parts = _parts(model, costs)
    gpus = config.cluster.max_workers
    micro = config.train.micro_batch_size or max(1, config.train.global_batch_size // gpus)
    height, width = model.config.grid
    visual = height * width * (views if config.model.views == "concat" else 1)
    kept = sum(part.cost.kept for part in parts)
    if config.train.activation_checkpointing:
        tokens = lengths.text + visual + lengths.report
        kept += _recomputed(model, costs["language model"].kept, tokens) - costs["language model"].kept
    parameters, trained = sum(p.parameters for p in parts), sum(p.trained for p in parts)
    memory = {
        stage: memory_per_gpu(
            stage,
            parameters=parameters,
            trained=trained,
            gpus=gpus,
            precision=config.train.precision,
            largest_layer=largest_layer(model),
            activations=kept * micro,
        )
        for stage in STAGES
    }
    generate = config.generate
    return Estimate(
        models=(config.model.vision, config.model.llm),
        parts=parts,
        lengths=lengths,
        visual_tokens=visual,
        generation=generation_flops(
            costs, lengths, visual, new_tokens=generate.max_new_tokens, beams=generate.num_beams
        ),
        gpus=gpus,
        micro_batch=micro,
        precision=config.train.precision,
        stage=None if config.train.deepspeed else config.train.zero_stage,
        memory=memory,
    )


def skeleton(config: Config) -> Any:
    """The model of a run on the meta device, in training mode."""
    shape = MeGPTConfig.of(config.model, language_model_config(config.model.llm), l2=config.train.l2)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    clusters = config.fit_prompts.num_clusters
    count = clusters if isinstance(clusters, int) else max(config.fit_prompts.candidates)
    with torch.device("meta"):
        bank = PromptBank((INSTRUCTION,) * count, torch.zeros(count, 1)) if config.model.dynamic_prompt else None
        model: Any = MeGPTForConditionalGeneration(shape, bank=bank)
    return model.to(dtype).train()


def _parts(model: Any, costs: dict[str, Cost]) -> tuple[Part, ...]:
    modules = dict(model.projector.enhancer.named_children()) if model.projector.enhancer else {}
    rows: list[tuple[str, list[nn.Module | None], Cost]] = [
        ("vision encoder", [model.vision], costs["vision"]),
        ("prompt encoder", [model.prompt_encoder], costs.get("prompt encoder", Cost())),
        *((LABELS.get(name, name), [module], costs[name]) for name, module in modules.items()),
        ("projection + LayerNorm", [model.projector.linear, model.projector.norm], costs["projector"]),
        ("findings", [model.findings], Cost()),
        ("language model", [model.language_model], costs["language model"]),
    ]
    parts = []
    for name, modules, cost in rows:
        own = [p for module in modules if module is not None for p in module.parameters()]
        if own or cost.forward:
            trained = sum(p.numel() for p in own if p.requires_grad)
            parts.append(Part(name, sum(p.numel() for p in own), trained, cost))
    return tuple(parts)


def _recomputed(model: Any, kept: int, tokens: int) -> int:
    """Bytes that the language model keeps when its layers are recomputed: the input of each, and one whole layer."""
    config = model.config.text_config
    each = tokens * config.hidden_size * model.projector.linear.weight.element_size()
    return int(config.num_hidden_layers * each + kept / config.num_hidden_layers)


def largest_layer(model: nn.Module) -> int:
    """Parameters of the largest module that ZeRO-3 gathers at once, counted as DeepSpeed does."""
    return max(sum(p.numel() for p in part.parameters(recurse=False)) for part in model.modules())


def flops_text(count: int) -> str:
    """A number of FLOPs with its unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}FLOP"
    return "–" if not count else f"{count} FLOP"
