"""The dynamic prompt: image clusters fitted once on the training split, each with a text a person can read and edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from megpt.config import FitPromptsConfig
from megpt.errors import InputError
from megpt.model.checkpoint.files import CENTROIDS, PROMPTS, check_prompts, read_prompts

INSTRUCTION = "Generate a comprehensive and detailed diagnosis report for this chest xray image."
TIE = 1e-5
HEADER = "# One prompt per image cluster. The texts may be edited; the order and number of entries may not.\n"


@dataclass(frozen=True)
class PromptBank:
    """K cluster centres (K, C) float32 and K prompt texts; without centres, one text for every study.

    `encoder` is the fingerprint of the encoder whose features were clustered, `sizes` and `examples` tell a person
    what each cluster holds (training studies in it, and the ids of those nearest its centre).
    """

    texts: tuple[str, ...]
    centroids: Tensor | None = None
    sizes: tuple[int, ...] = ()
    examples: tuple[tuple[str, ...], ...] = ()
    encoder: str | None = field(default=None)

    def __post_init__(self) -> None:
        check_prompts(self.texts, None if self.centroids is None else len(self.centroids))

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def fixed(cls, text: str = INSTRUCTION) -> PromptBank:
        """The bank of `model.dynamic_prompt: false`: one instruction for every study."""
        return cls(texts=(text,))

    def assign(self, features: Tensor) -> Tensor:
        """The cluster of each study: pooled features (B, C) → ids (B,) long. Rows do not influence each other."""
        if self.centroids is None:
            return torch.zeros(len(features), dtype=torch.long, device=features.device)
        centres = self.centroids.to(features.device, torch.float64)
        distance = (features.to(torch.float64)[:, None] - centres[None]).square().sum(-1)
        # A feature's last digits depend on the batch it was computed in. Of clusters that they alone tell apart, the
        # first is taken.
        near = distance <= distance.amin(dim=1, keepdim=True) * (1 + TIE)
        return near.to(torch.uint8).argmax(dim=1)

    def with_texts(self, texts: Sequence[str]) -> PromptBank:
        """The same clusters under other texts."""
        return replace(self, texts=tuple(texts))

    def save(self, folder: str | Path) -> Path:
        """Write prompts.yaml and, where there are clusters, centroids.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        entries: list[dict[str, Any]] = []
        for k, text in enumerate(self.texts):
            entry: dict[str, Any] = {"cluster": k}
            if self.sizes:
                entry["studies"] = int(self.sizes[k])
            if self.examples:
                entry["examples"] = list(self.examples[k])
            entries.append({**entry, "text": text})
        tree = {"encoder": self.encoder, "prompts": entries}
        text = HEADER + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
        (folder / PROMPTS).write_text(text, encoding="utf-8")
        if self.centroids is not None:
            save_file({"centroids": self.centroids.float().contiguous().cpu()}, folder / CENTROIDS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> PromptBank:
        """Read what `save` wrote.

        Raises:
            InputError: no bank there, or one that cannot be read.
        """
        found = read_prompts(folder := Path(folder))
        centroids = load_file(folder / CENTROIDS)["centroids"] if (folder / CENTROIDS).exists() else None
        return cls(**found, centroids=centroids)


def fit_prompt_bank(
    features: np.ndarray | Tensor,
    reports: Sequence[str],
    study_ids: Sequence[str],
    settings: FitPromptsConfig,
    seed: int,
    *,
    encoder: str | None = None,
) -> PromptBank:
    """Cluster pooled features (N, C) of the training studies and write a default prompt for each cluster.

    The result does not depend on the order of the studies.

    Raises:
        InputError: fewer studies than clusters, or features that are not finite.
    """
    from megpt.model.clusters import cluster_terms, fit_clusters

    order = np.argsort(np.asarray(study_ids, dtype=object), kind="stable")
    x = np.asarray(features, dtype=np.float32)[order]
    ids = [study_ids[i] for i in order]
    texts = [reports[i] or "" for i in order]
    if not np.isfinite(x).all():
        raise InputError("the features of some studies are not finite", cause="films or encoder weights hold NaN")
    centres, labels = fit_clusters(x, settings, seed)
    terms = cluster_terms(texts, labels, len(centres), settings.terms)
    examples = []
    for k, centre in enumerate(centres):
        members = np.flatnonzero(labels == k)
        near = members[np.argsort(np.square(x[members] - centre).sum(1), kind="stable")[:5]]
        examples.append(tuple(ids[i] for i in near))
    return PromptBank(
        texts=tuple(default_text(words) for words in terms),
        centroids=torch.from_numpy(centres),
        sizes=tuple(int(n) for n in np.bincount(labels, minlength=len(centres))),
        examples=tuple(examples),
        encoder=encoder,
    )


def default_text(terms: Sequence[str]) -> str:
    """The instruction, and the terms that set a cluster's training reports apart."""
    if not terms:
        return INSTRUCTION
    return f"{INSTRUCTION} Terms common in reports of similar images: {', '.join(terms)}."
