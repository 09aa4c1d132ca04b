"""One report for one person, with what made it: the JSON of `megpt report --json` and of `megpt serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt import __version__
from megpt.config import Config
from megpt.model.checkpoint.decoding import RULES, completed
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.fingerprint import fingerprint
from megpt.model.prompts import read_prompts

if TYPE_CHECKING:
    from megpt.generation.writer import Prediction

RESEARCH_ONLY = "For research only. Not a medical device; not for clinical decisions."


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True)
class Author:
    """A checkpoint and the decoding that applies to it, known without torch."""

    folder: Path
    config: Config
    """With the checkpoint's decoding where the config sets none."""
    origins: dict[str, str]
    """Where each rule of the decoding comes from."""
    model: str
    """The checkpoint's fingerprint."""
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, config: Config) -> Author:
        """The author that `checkpoint`, `generate` and `seed` describe.

        Raises:
            InputError: no checkpoint, a damaged one, or one whose decoding contradicts the config.
        """
        config.require("checkpoint")
        folder = local_folder(str(config.checkpoint))
        rules, origins = completed(config.generate, folder)
        texts = read_prompts(folder)["texts"]
        return cls(folder, config.updated(generate=rules.model_dump(mode="json")), origins, fingerprint(folder), texts)

    def decoding(self) -> dict[str, Any]:
        """All that decides which tokens are chosen."""
        rules = self.config.generate.model_dump(mode="json", include={*RULES, "backend", "precision"})
        return {**rules, "seed": self.config.seed}

    def answer(self, prediction: Prediction) -> dict[str, Any]:
        """What there is to say of a report."""
        number = prediction.prompt_id
        return {
            "report": prediction.report,
            "prompt_id": number,
            "prompt": None if number is None else self.prompts[number],
            "num_tokens": prediction.num_tokens,
            "finish_reason": prediction.finish_reason,
            "logprob": _rounded(prediction.logprob),
            "sentence_logprobs": [_rounded(value) for value in prediction.sentence_logprobs or ()],
            "novelty": _rounded(prediction.novelty),
            "films": len(prediction.study.views[: self.config.data.max_views]),
            "model": self.model,
            "decoding": self.decoding(),
            "megpt": __version__,
            "notice": RESEARCH_ONLY,
        }
