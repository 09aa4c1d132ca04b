"""Fitting the prompt bank: clusters of image features, and the words that distinguish each cluster's reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_score
from torch import Tensor

from megpt.config import FitPromptsConfig
from megpt.errors import InputError
from megpt.model.prompts import PromptBank, default_text

SILHOUETTE_SAMPLE = 5_000


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
        reach=float(np.percentile(np.linalg.norm(x.astype(np.float64) - centres[labels], axis=1), 99)),
    )


def fit_clusters(x: np.ndarray, settings: FitPromptsConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (K, C) float32 and the index of the nearest one to each row (N,).

    K is `num_clusters`, or the candidate with the best silhouette. Centres are ordered by size, largest first.

    Raises:
        InputError: fewer rows than clusters.
    """
    fits = [_fit(x, k, seed) for k in candidates(settings, len(x))]
    centres, labels = fits[0] if len(fits) == 1 else max(fits, key=lambda fit: _silhouette(x, fit[1], seed))
    sizes = np.bincount(labels, minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    centres = np.ascontiguousarray(centres[order], dtype=np.float32)
    return centres, nearest(x, centres)


def candidates(settings: FitPromptsConfig, studies: int) -> list[int]:
    """The numbers of clusters to try with this many studies; the best one is kept.

    Raises:
        InputError: fewer studies than clusters.
    """
    if settings.num_clusters == "silhouette":
        found = [k for k in sorted(set(settings.candidates)) if 2 <= k < studies]
        if not found:
            raise InputError(
                f"fit_prompts.candidates = {list(settings.candidates)}: none is above 1 and below {studies}",
                next="add a smaller candidate, or set fit_prompts.num_clusters",
            )
        return found
    if studies < settings.num_clusters:
        raise InputError(
            f"fit_prompts.num_clusters = {settings.num_clusters}, but there are only {studies} training studies",
            next=f"set fit_prompts.num_clusters={max(1, studies // 2)}",
        )
    return [settings.num_clusters]


def _fit(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    kmeans = MiniBatchKMeans(n_clusters=k, random_state=seed, n_init=10, batch_size=4096, max_iter=200)
    kmeans.fit(x)
    centres = kmeans.cluster_centers_.astype(np.float32)
    return centres, nearest(x, centres)


def _silhouette(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    if len(np.unique(labels)) < 2:
        return -1.0
    sample = min(SILHOUETTE_SAMPLE, len(x))
    rows = np.random.default_rng(seed).choice(len(x), sample, replace=False)
    if len(np.unique(labels[rows])) < 2:
        return -1.0
    return float(silhouette_score(x[rows], labels[rows]))


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The index of the nearest centre to each row by Euclidean distance, in float64 like `PromptBank.assign`."""
    wide = centres.astype(np.float64)
    parts = [
        np.square(rows[:, None].astype(np.float64) - wide[None]).sum(-1).argmin(1)
        for rows in np.array_split(x, max(1, len(x) // 256))
    ]
    return np.concatenate(parts)


def cluster_terms(texts: Sequence[str], labels: np.ndarray, k: int, count: int) -> list[list[str]]:
    """For each cluster the `count` terms (one or two words) with the highest class-wise TF-IDF.

    A cluster is one long document: tf = a term's share of the cluster's terms, idf = log(1 + mean terms per cluster /
    the term's count over all clusters). Terms that are common in every cluster therefore drop out.
    """
    vectorizer = CountVectorizer(
        stop_words="english", ngram_range=(1, 2), token_pattern=r"(?u)\b[a-zA-Z][a-zA-Z-]{2,}\b", binary=True, min_df=1
    )
    try:
        counts: Any = vectorizer.fit_transform(texts)
    except ValueError:  # no word in any report
        return [[] for _ in range(k)]
    words = vectorizer.get_feature_names_out()
    per_class = np.stack([np.asarray(counts[np.flatnonzero(labels == c)].sum(0)).ravel() for c in range(k)])
    total = per_class.sum(0)
    tf = per_class / np.maximum(per_class.sum(1, keepdims=True), 1)
    idf = np.log1p(per_class.sum() / k / np.maximum(total, 1))
    share = per_class / np.maximum(np.bincount(labels, minlength=k)[:, None], 1)
    overall = total / max(len(texts), 1)
    # A cluster is named only by terms that its reports use more often than the others do.
    score = np.where((share > overall) | (k == 1), tf * idf, 0.0)
    return [_best(score[c], words, count) for c in range(k)]


def _best(score: np.ndarray, words: np.ndarray, count: int) -> list[str]:
    chosen: list[str] = []
    # Single words come first among equals: the second word of a pair may be one that every report has.
    lengths = np.array([word.count(" ") for word in words])
    for index in np.lexsort((lengths, -score)):
        if score[index] <= 0 or len(chosen) == count:
            break
        term = str(words[index])
        if "xxxx" in term or any(set(term.split()) & set(other.split()) for other in chosen):
            continue
        chosen.append(term)
    return chosen
