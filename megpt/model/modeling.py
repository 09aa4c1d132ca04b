"""MeGPTForConditionalGeneration: films of a study → visual tokens → a frozen language model → a report.

model, processor = build_model(config.model, bank=bank, seed=42)
ids = model.generate(**processor(images=[[film, film]], return_tensors="pt"), max_new_tokens=60)
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin
from transformers.utils import ModelOutput

from megpt.errors import InputError
from megpt.model import language, lora
from megpt.model.checkpoint.load import load_model
from megpt.model.checkpoint.save import Checkpointed
from megpt.model.configuration import MeGPTConfig
from megpt.model.context import suffixes_with
from megpt.model.findings import FindingsHead, told
from megpt.model.generating import ReportGeneration
from megpt.model.loss import IGNORED_LABEL, report_cross_entropy
from megpt.model.projector import Projector
from megpt.model.prompts import PromptBank
from megpt.model.vision import VisionEncoder, VisualFeatures, check_films, in_sequence, pooled, view_mean


@dataclass
class MeGPTOutput(ModelOutput):
    """loss = cross_entropy + l2 + label_loss; without labels the logits (B, vocabulary) of the first token."""

    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    l2: Tensor | None = None
    label_loss: Tensor | None = None
    logits: Tensor | None = None
    prompt_id: Tensor | None = None


class MeGPTForConditionalGeneration(  # pyrefly: ignore[inconsistent-inheritance]
    Checkpointed, ReportGeneration, GenerationMixin
):
    """The whole model, as `build_model` or `from_pretrained` makes it; from a config alone, all weights are random.

    Trained parts have `requires_grad`: the projector with its feature modules always, LoRA in mode delta, the encoder
    in mode deep. Frozen parts stay in evaluation mode.
    """

    config_class = MeGPTConfig
    config: MeGPTConfig
    base_model_prefix = "megpt"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: MeGPTConfig,
        *,
        vision: VisionEncoder | None = None,
        language_model: Any = None,
        bank: PromptBank | None = None,
    ):
        super().__init__(config)
        further = config.vision_args or {}
        self.vision = vision or VisionEncoder(config.vision, config.image_size, config.layout, **further)
        config.layout, config.image_size = self.vision.layout, self.vision.image_size
        self.language_model = language_model or AutoModelForCausalLM.from_config(
            config.text_config, trust_remote_code=False
        )
        self.bank = bank or PromptBank.fixed()
        width = self.get_input_embeddings().embedding_dim
        self.projector = Projector(self.vision.channels, width, config)
        self.findings = FindingsHead(self.vision.channels) if config.findings else None
        # Prompts are chosen by the encoder as it was when they were fitted: a frozen copy if it is trained.
        own = config.mode == "deep" and self.bank.centroids is not None
        self.prompt_encoder = copy.deepcopy(self.vision) if own else None
        language.without_dropout(self.language_model)
        rank, alpha, dropout = config.lora_rank, config.lora_alpha, config.lora_dropout
        if config.mode == "delta":
            lora.add_adapters(self.vision.trunk, config.vision, rank=rank, alpha=alpha, dropout=dropout)
        if config.llm_lora:
            rank, alpha = config.llm_lora_size
            targets = config.llm_lora_targets
            language.add_language_adapter(self.language_model, targets, rank=rank, alpha=alpha, dropout=dropout)
        self.generation_config = self.language_model.generation_config = language.greedy_decoding(self.language_model)
        self._freeze()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint folder or hub id; `checkpoint.load.load_model` lists the keywords and errors."""
        return load_model(cls, str(pretrained_model_name_or_path), **kwargs)

    # ---- what is trained -------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        idle = {f"vision.trunk.{name}" for name in self.vision.layout.get("idle", ())}
        for name, parameter in self.named_parameters():
            trained = name.startswith(("projector.", "findings.")) or ".lora_" in name
            trained |= name.startswith("vision.") and self.config.mode == "deep" and name not in idle
            parameter.requires_grad_(trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> MeGPTForConditionalGeneration:
        """Training mode for the trained parts; frozen parts, and the encoder's batch statistics, stay as they are."""
        super().train(mode)
        if self.prompt_encoder is not None:
            self.prompt_encoder.eval()
        if self.config.mode != "deep":
            self.vision.eval()
        for part in self.vision.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
            if isinstance(part, lora.RowLoRA):
                part.lora_dropout.train(mode)
        return self

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Recompute the activations of encoder and language model in the backward pass instead of keeping them."""
        settings = gradient_checkpointing_kwargs or {"use_reentrant": False}
        language.recompute_activations(self.language_model, settings)
        if self.config.mode != "shallow" and hasattr(self.vision.trunk, "set_grad_checkpointing"):
            self.vision.trunk.set_grad_checkpointing(True)

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the language model ties its own weights, and there are no others to tie."""

    # ---- films → tokens --------------------------------------------------------------------------------------------

    def encode(
        self,
        pixel_values: Tensor | None,
        view_mask: Tensor | None = None,
        prompt_id: Tensor | None = None,
        observations: Tensor | None = None,
    ) -> VisualFeatures:
        """Films (B, V, 3, S, S) with the mask of real views (B, V) → `VisualFeatures`.

        The features of a study depend on its own films alone; padding views have no effect. `prompt_id` (B,) holds
        prompts that are already known and need not be chosen again, and -1 for the others. `observations` (B, 14) are
        what the reports state, to be told in place of what the films show (`model.findings`).

        Raises:
            InputError: no films, a study without views, NaN pixels, or films of another size.
        """
        if pixel_values is None:
            raise InputError("pixel_values are missing", next="pass what processor(images=…) returns")
        if pixel_values.ndim == 4:
            pixel_values = pixel_values[:, None]
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        view_mask = view_mask.bool()
        films = pixel_values[view_mask].to(self.projector.linear.weight.dtype)  # (R, 3, S, S)
        check_films(films, view_mask, self.vision.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode != "shallow"):
            maps = self.vision(films)  # (R, C, h, w)
        prompt_id, novelty = self._prompt_id(films, maps, view_mask, prompt_id)
        if self.config.global_only:
            maps = maps.mean((2, 3), keepdim=True)
        if self.config.views == "mean":
            tokens, l2 = self.projector(view_mean(maps, view_mask))
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            flat, l2 = self.projector(maps)  # (R, n, H)
            tokens, mask = in_sequence(flat, view_mask)
        visual = VisualFeatures(tokens, mask, prompt_id, l2, novelty=novelty)
        if self.findings is not None:
            visual.findings = self.findings(pooled(maps, view_mask))
            visual.told = told(visual.findings, self.config.findings_threshold, observations)
        return visual

    @torch.no_grad()
    def _prompt_id(
        self, films: Tensor, maps: Tensor, view_mask: Tensor, known: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The prompt of each study (B,), and their novelty (B,) where all are chosen now."""
        if self.bank.centroids is None:
            return torch.zeros(len(view_mask), dtype=torch.long, device=maps.device), None
        if known is None:
            features = pooled(self._maps_for_prompts(films, maps), view_mask)
            chosen = self.bank.assign(features)
            return chosen, self.bank.novelty(features, chosen)
        unknown = known < 0
        if unknown.any():
            its_films = unknown.repeat_interleave(view_mask.sum(1))
            fresh = self._maps_for_prompts(films[its_films], maps[its_films])
            known = known.masked_scatter(unknown, self.bank.assign(pooled(fresh, view_mask[unknown])))
        return known, None

    def _maps_for_prompts(self, films: Tensor, maps: Tensor) -> Tensor:
        """The maps (R, C, h, w) from the encoder that the clusters were fitted with."""
        if self.prompt_encoder is not None:
            return self.prompt_encoder(films)
        if self.config.mode == "delta":
            with lora.adapters_off(self.vision.trunk):
                return self.vision(films)
        return maps

    # ---- tokens → prompt -------------------------------------------------------------------------------------------

    def prompt_ids(self) -> tuple[list[int], list[list[int]]]:
        """The token ids before the visual tokens (P,), and those after them for each prompt of the bank, [(S_k,)]."""
        prompts = self.config.prompts or {"prefix": [], "suffixes": [[] for _ in self.bank.texts]}
        return list(prompts["prefix"]), [list(ids) for ids in prompts["suffixes"]]

    def assemble(self, visual: VisualFeatures, context_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The prompt with its visual tokens: embeddings (B, T, H) and attention mask (B, T) long, padded on the left.

        Raises:
            InputError: the prompt leaves no room for a report in the context of the language model, or the model was
                made without `context`.
        """
        prefix, suffixes = self.prompt_ids()
        if context_ids is not None and not self.config.context:
            raise InputError("context_ids: this model was made without model.context", next="leave them out")
        chosen = [suffixes[k] for k in visual.prompt_id.tolist()]
        if context_ids is not None or visual.told is not None:
            chosen = suffixes_with(self.config.prompts or {}, visual.prompt_id, context_ids, visual.told)
        device, embed = visual.tokens.device, self.get_input_embeddings()
        # One lookup for the whole batch: under ZeRO-3 each one gathers the embedding table.
        ids = torch.tensor([i for part in (prefix, *chosen) for i in part], dtype=torch.long, device=device)
        head, *tails = embed(ids).split([len(prefix), *map(len, chosen)])
        counts = visual.token_mask.sum(1).tolist()
        rows = [
            torch.cat((head, tokens[:count].to(head.dtype), tail))
            for tokens, count, tail in zip(visual.tokens, counts, tails, strict=True)
        ]
        longest = max(len(row) for row in rows)
        self.check_context(longest, 1)
        embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([F.pad(row.new_ones(len(row)), (longest - len(row), 0)) for row in rows]).long()
        return embeds, mask

    # ---- loss --------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: Tensor | None = None,
        view_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        visual: VisualFeatures | None = None,
        prompt_id: Tensor | None = None,
        observations: Tensor | None = None,
        num_studies_in_batch: float | None = None,
        context_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MeGPTOutput:
        """The loss of reports `labels` (B, L): token ids and the end token, padded with `loss.IGNORED_LABEL`.

        Args:
            num_items_in_batch: divides the summed cross-entropy: the number of report tokens in the whole optimizer
                step, so that the gradient does not depend on how the step is split. The default is the mean.
            visual: features from `encode`, instead of pixels.
            prompt_id: as in `encode`.
            observations, num_studies_in_batch: `stated` and `studies` of `FindingsHead.loss`.
            context_ids: what is known of each study beside its films, (B, C), from `megpt.model.context`.
        """
        visual = visual or self.encode(pixel_values, view_mask, prompt_id, observations)
        embeds, mask = self.assemble(visual, context_ids)
        head = language.vocabulary_head(self.language_model)
        if labels is None:
            first = head(language.hidden_states(self.language_model, embeds, mask)[:, -1])
            return MeGPTOutput(l2=visual.l2, logits=first, prompt_id=visual.prompt_id)
        self.check_context(embeds.shape[1], labels.shape[1])
        known = labels != IGNORED_LABEL
        reports = self.get_input_embeddings()(labels.masked_fill(~known, 0)).to(embeds.dtype)
        embeds, mask = torch.cat((embeds, reports), 1), torch.cat((mask, known.long()), 1)
        hidden = language.hidden_states(self.language_model, embeds, mask)
        chunk = self.config.loss_chunk
        cross_entropy = report_cross_entropy(hidden, labels, head, chunk=chunk, items=num_items_in_batch)
        labelled = None
        if self.findings is not None and visual.findings is not None and observations is not None:
            labelled = self.findings.loss(visual.findings, observations, num_studies_in_batch or len(observations))
        return MeGPTOutput(
            loss=sum((part for part in (visual.l2, labelled) if part is not None), cross_entropy),
            cross_entropy=cross_entropy,
            l2=visual.l2,
            label_loss=labelled,
            prompt_id=visual.prompt_id,
        )


AutoModelForImageTextToText.register(MeGPTConfig, MeGPTForConditionalGeneration, exist_ok=True)
