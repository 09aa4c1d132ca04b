"""`model.generate`: transformers' own, around MeGPT's prompt."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from megpt.errors import InputError
from megpt.model.vision import VisualFeatures

WHOLE_LENGTHS = {name: getattr(GenerationConfig(), name) for name in ("min_length", "max_length")}
"""Settings of transformers that count the prompt too, with their defaults."""


class ReportGeneration:
    """The method `generate` of a model with a `config`, `encode`, `assemble` and a `language_model`."""

    encode: Any
    assemble: Any
    config: Any
    language_model: Any
    generation_config: Any

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        view_mask: Tensor | None = None,
        visual: VisualFeatures | None = None,
        context_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Reports as new token ids (B, L), from transformers' `generate`, to which further keywords are passed on.

        Without keywords the decoding is that of the checkpoint's generation_config.json: as in validation. A study's
        report is the same alone and in a batch, unless tokens are sampled.

        Raises:
            InputError: as for `encode` and `assemble`, the context has no room for `max_new_tokens`, text is given, or
                a length that counts the prompt.
        """
        if given := sorted({"input_ids", "inputs_embeds", "attention_mask"} & kwargs.keys()):
            raise InputError(
                f"MeGPT's generate takes films, not {', '.join(given)}",
                cause="the prompt is chosen by the film, from the checkpoint's prompts.yaml",
                next="pass what processor(images=…) returns, without text",
            )
        settings = copy.deepcopy(kwargs.pop("generation_config", None) or self.generation_config)
        kwargs = settings.update(**kwargs)
        if counted := [name for name in WHOLE_LENGTHS if getattr(settings, name) not in (None, WHOLE_LENGTHS[name])]:
            raise InputError(
                f"MeGPT's generate does not take {', '.join(counted)}",
                cause="they count the prompt too, which is padded to the longest of its batch",
                next="set min_new_tokens and max_new_tokens",
            )
        visual = visual or self.encode(pixel_values, view_mask)
        embeds, mask = self.assemble(visual, context_ids)
        self.check_context(embeds.shape[1], int(settings.max_new_tokens or 0))
        self._penalise_evenly(settings, kwargs)
        return self.language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, generation_config=settings, **kwargs
        )

    def _penalise_evenly(self, settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
        """Replace transformers' repetition penalty by a processor of the same kind, in place.

        Its own skips as many *generated* tokens of a row as the row has left padding: with embeddings as input there
        are no prompt ids that the padding could stand for. A study's report would depend on its batch.
        """
        penalty = settings.repetition_penalty
        if penalty is None:  # transformers takes what a config leaves open from the model's own
            penalty = self.generation_config.repetition_penalty
        settings.repetition_penalty = 1.0
        if penalty not in (None, 1.0):
            own = RepetitionPenaltyLogitsProcessor(penalty=float(penalty))
            kwargs["logits_processor"] = LogitsProcessorList([own, *(kwargs.get("logits_processor") or [])])

    def check_context(self, prompt: int, report: int) -> None:
        """Raise InputError when a prompt and a report of these lengths do not fit the language model's context."""
        longest = self.config.longest
        if longest is not None and prompt + report > longest:
            raise InputError(
                f"the prompt's {prompt} tokens and {report} report tokens exceed the model's context of {longest}",
                cause="a long text in prompts.yaml, many views with model.views = concat, or a small context",
                next="shorten the prompts, set model.views=mean, or lower model.context_tokens, max_new_tokens or "
                "train.max_report_tokens",
            )
