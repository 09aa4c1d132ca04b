"""`model.generate`: transformers' own, around MeGPT's prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from megpt.errors import InputError
from megpt.model.vision import VisualFeatures


class ReportGeneration:
    """The method `generate` of a model with `encode`, `assemble`, `check_context` and a `language_model`."""

    encode: Any
    assemble: Any
    check_context: Any
    language_model: Any
    generation_config: Any

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        view_mask: Tensor | None = None,
        visual: VisualFeatures | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Reports as new token ids (B, L), from transformers' `generate`, to which further keywords are passed on.

        Without keywords the decoding is that of the checkpoint's generation_config.json: as in validation.

        Raises:
            InputError: as for `encode` and `assemble`, the context has no room for `max_new_tokens`, or text is given.
        """
        if given := sorted({"input_ids", "inputs_embeds", "attention_mask"} & kwargs.keys()):
            raise InputError(
                f"MeGPT's generate takes films, not {', '.join(given)}",
                cause="the prompt is chosen by the film, from the checkpoint's prompts.yaml",
                next="pass what processor(images=…) returns, without text",
            )
        visual = visual or self.encode(pixel_values, view_mask)
        embeds, mask = self.assemble(visual)
        settings = kwargs.setdefault("generation_config", None) or self.generation_config
        kwargs["generation_config"] = settings
        wanted = kwargs.get("max_new_tokens") or getattr(settings, "max_new_tokens", None) or 0
        self.check_context(embeds.shape[1], int(wanted))
        self._penalise_evenly(kwargs)
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def _penalise_evenly(self, kwargs: dict[str, Any]) -> None:
        """Replace transformers' repetition penalty by a processor of the same kind, in place.

        Its own skips as many *generated* tokens of a row as the row has left padding: with embeddings as input there
        are no prompt ids that the padding could stand for. A study's report would depend on its batch.
        """
        penalty = kwargs.pop("repetition_penalty", None) or next(
            (
                value
                for settings in (kwargs["generation_config"], self.generation_config)
                if (value := getattr(settings, "repetition_penalty", None)) is not None
            ),
            1.0,
        )
        kwargs["repetition_penalty"] = 1.0
        if penalty != 1.0:
            own = RepetitionPenaltyLogitsProcessor(penalty=float(penalty))
            kwargs["logits_processor"] = LogitsProcessorList([own, *(kwargs.get("logits_processor") or [])])
