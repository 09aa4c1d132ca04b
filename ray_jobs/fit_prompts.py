"""studies/ → prompts/: cluster the training films, one readable prompt per cluster.

    megpt fit-prompts --config configs/phantom.yaml studies=runs/demo/studies output=runs/demo/prompts

Actors hold the frozen encoder and take one file of the training split each. The features of a file are computed in
batches that depend on that file alone, so the result is the same on any number of workers. Writes
OUT/prompts.yaml (to be read and edited) and OUT/centroids.safetensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from megpt.config import Config
from megpt.data import studies as tables
from megpt.data.cleaning import clean, learnable
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, load_films
from megpt.places import place
from megpt.progress import Progress, console, log
from megpt.study import Study
from ray_jobs.imports import uncollected
from ray_jobs.job import Job, absolute
from ray_jobs.placement import elsewhere
from ray_jobs.runtime import quiet

if TYPE_CHECKING:
    from megpt.model.vision import VisionEncoder

# Studies encoded in one forward pass. Part of the result (in its last digits), hence no setting.
BATCH = 16
COLUMNS = ["study_id", "report", "findings", "impression"]


class FitPrompts(Job):
    name = "fit-prompts"
    reads = (
        *("studies", "limit", "seed", "fit_prompts"),
        *("model.vision", "model.vision_weights", "model.vision_args", "model.image_size"),
        *("data.section", "data.cleaner", "data.max_views", "data.max_pixels"),
    )
    needs = ("studies",)

    def open(self) -> None:
        from megpt.model.build import build_encoder
        from megpt.model.clusters import candidates

        learnable(self.config.data.cleaner)
        self.units = choose(self.config)
        self.wanted = sum(len(rows) for _, rows in self.units)
        candidates(self.config.fit_prompts, self.wanted)  # too few are found out before their films are encoded
        _, self.encoder = build_encoder(self.config.model, seed=self.config.seed)

    def inputs(self) -> dict[str, Any]:
        return {"studies": tables.fingerprint(str(self.config.studies)), "encoder": self.encoder}

    def preview(self, folder: Path) -> None:
        vision = self.config.model.vision
        log(f"fit-prompts: would encode {self.wanted} training studies with {vision} and cluster them")

    def work(self, folder: Path) -> None:
        self.features = encode(self.config, self.units, total=self.wanted)

    def finish(self, folder: Path) -> dict[str, Any]:
        from megpt.model.clusters import fit_prompt_bank

        ids = sorted(self.features)
        if not ids:
            raise InputError("no training study has a readable film", where=str(self.config.studies))
        texts = reports(self.config, set(ids))
        self.bank = fit_prompt_bank(
            np.stack([self.features[i] for i in ids]),
            [texts[i] for i in ids],
            ids,
            self.config.fit_prompts,
            self.config.seed,
            encoder=self.encoder,
        )
        self.bank.save(folder)
        return {"studies": len(ids), "without_films": self.wanted - len(ids), "clusters": len(self.bank)}

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        console.print(show(self.bank))
        log(f"fit-prompts: {len(self.bank)} prompts in {folder / 'prompts.yaml'}; edit the texts as you like")


def choose(config: Config) -> list[tuple[str, list[int]]]:
    """Each file of the training split with the rows of it that are encoded: all, or an even draw by seed.

    Raises:
        InputError: there is no training study.
    """
    files = [path for _, path in tables.study_files(str(config.studies), "train")]
    counts = []
    for path in files:
        with tables.open_parquet(path) as file:
            counts.append(file.metadata.num_rows)
    if not sum(counts):
        raise InputError("the training split holds no study", where=str(config.studies), next="see its failed.parquet")
    total = min(sum(counts), config.limit or sum(counts))
    chosen = np.arange(total)
    if total > config.fit_prompts.max_studies:
        draw = np.random.default_rng(config.seed)
        chosen = np.sort(draw.choice(total, config.fit_prompts.max_studies, replace=False))
    starts = np.cumsum([0, *counts])
    units = []
    for path, start, stop in zip(files, starts[:-1], starts[1:], strict=True):
        rows = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(rows):
            units.append((str(path.absolute()), rows.tolist()))
    return units


def encode(
    config: Config,
    units: list[tuple[str, list[int]]],
    *,
    total: int,
    encoder: type[Encoder] | None = None,
    name: str = "fit-prompts",
) -> dict[str, np.ndarray]:
    """Study id → pooled feature (C,) float32, of every chosen study with a readable film.

    Args:
        encoder: the actor; by default the one of `config.model`.
        name: of the progress bar.
    """
    import ray.data

    quiet(ray.data.DataContext.get_current())
    items = [{"path": path, "rows": np.array(rows)} for path, rows in units]
    pool = ray.data.ActorPoolStrategy(
        min_size=min(config.cluster.min_workers, len(items)), max_size=min(config.cluster.max_workers, len(items))
    )
    # One file a block, or a small table would be one block and occupy one actor.
    encoded = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        encoder or Encoder,
        batch_size=1,
        compute=pool,
        num_cpus=config.cluster.cpus_per_worker,
        num_gpus=config.cluster.gpus_per_worker or None,
        fn_constructor_args=(absolute(config).to_yaml(),),
        **elsewhere(),
    )
    features: dict[str, np.ndarray] = {}
    with Progress(name, total) as progress:
        for row in encoded.iter_rows():
            good = bool(row["readable"])
            if good:
                features[str(row["study_id"])] = np.asarray(row["feature"], dtype=np.float32)
            progress.advance(1, int(not good))
    return features


class Encoder:
    """Ray Data's actor: files of studies in, one row per study out: study_id, readable, feature (C,)."""

    def __init__(self, config: str):
        with uncollected():
            import torch
            import yaml

            from megpt.model.build import build_image_processor

        self.config = Config.model_validate(yaml.safe_load(config))
        self.device = "cuda" if self.config.cluster.gpus_per_worker else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(max(1, int(self.config.cluster.cpus_per_worker)))
        encoder = self.load()
        self.processor = build_image_processor(encoder)
        self.encoder = encoder.to(self.device)

    def load(self) -> VisionEncoder:
        """The encoder of `config.model`; another actor may have another."""
        from megpt.model.build import build_encoder

        return build_encoder(self.config.model, seed=self.config.seed)[0]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [row for file in zip(batch["path"], batch["rows"], strict=True) for row in self._file(*file)]
        return {name: np.array([row[name] for row in rows]) for name in ("study_id", "readable", "feature")}

    def _file(self, path: str, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
        wanted = set(numbers.tolist())
        chosen = (row for number, row in enumerate(tables.read_rows(place(path))) if number in wanted)
        studies = (Study.from_row({**row, "views": row.get("views") or ()}) for row in chosen)
        while batch := list(islice(studies, BATCH)):
            yield from self._encode(batch)

    def _encode(self, studies: list[Study]) -> Iterator[dict[str, Any]]:
        import torch

        from megpt.model.vision import prompt_features

        films, data = {}, self.config.data
        for study in studies:
            with contextlib.suppress(UnreadableFilm):
                size = self.processor.image_size
                films[study.study_id] = load_films(
                    study, size=size, max_views=data.max_views, max_pixels=data.max_pixels
                )
        features = {}
        if films:
            inputs = {name: x.to(self.device) for name, x in self.processor(list(films.values())).items()}
            with torch.no_grad():
                x = prompt_features(self.encoder, inputs["pixel_values"], inputs["view_mask"])
            features = dict(zip(films, x.cpu().numpy(), strict=True))
        empty = np.zeros(self.encoder.channels, dtype=np.float32)
        for study in studies:
            name = study.study_id
            yield {"study_id": name, "readable": name in features, "feature": features.get(name, empty)}


def reports(config: Config, wanted: set[str]) -> dict[str, str]:
    """Study id → its cleaned report text; empty where there is none."""
    texts = {}
    for study in tables.read_studies(str(config.studies), "train", columns=COLUMNS):
        if study.study_id in wanted:
            text = getattr(study, config.data.section) or ""
            texts[study.study_id] = clean(text, config.data.cleaner) if text else ""
    return texts


def show(bank: Any) -> Table:
    """Each cluster's size, example ids and prompt, for the screen."""
    table = Table(title="prompts")
    for heading in ("cluster", "studies", "examples", "prompt"):
        table.add_column(heading, overflow="fold")
    for k, text in enumerate(bank.texts):
        table.add_row(str(k), str(bank.sizes[k]), ", ".join(bank.examples[k][:3]), text)
    return table
