"""The generate job's actor: it has the model, and writes a shard's file."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from PIL import Image

from megpt.config import Config
from megpt.errors import MegptError, to_json
from megpt.films.decode import UnreadableFilm
from megpt.generation import table
from megpt.generation.plan import Plan, Planned
from megpt.study import Study
from ray_jobs._films import CHUNK, Pixels, decode
from ray_jobs.failures import known_failure
from ray_jobs.runtime import uncollected

if TYPE_CHECKING:
    from megpt.generation.writer import Films, Prediction

# A shard's films are decoded while the one before it is generated: two calls in flight, one of them on the model.
CALLS_PER_ACTOR = 2
# Times that a decoding task is begun again when its process dies, before its studies are tried one by one.
RETRIES = 3


class ShardWorker:
    """Ray Data's actor: shard numbers in, one row of counts a shard out; the reports go to the shard's file.

    It is called from two threads. The lock lets one of them use the model; the other waits with its first films
    decoded, or writes its file.
    """

    def __init__(self, config: str, plan: Plan, archive: str, fingerprint: str, decode_cpus: float):
        # Here and not above: the command that starts actors needs no torch, which takes seconds to import.
        with uncollected():
            import torch
            import yaml

            from megpt.generation.writer import ReportWriter

        self.config = Config.model_validate(yaml.safe_load(config))
        self.plan, self.archive, self.fingerprint = plan, archive, fingerprint
        self.model = threading.Lock()
        self.writer = ReportWriter(str(self.config.checkpoint), self.config.generate, self.config.seed)
        task: Any = decode  # Ray's types know functions without keywords only
        self.decode = ray.remote(task).options(num_cpus=decode_cpus, scheduling_strategy="SPREAD", max_retries=RETRIES)
        if self.config.cluster.cpus_per_worker >= 2:  # else Ray's own setting of one thread is right
            torch.set_num_threads(int(self.config.cluster.cpus_per_worker))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._answer(int(number)) for number in batch["shard"]]
        return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}

    def _answer(self, number: int) -> dict[str, Any]:
        """Counts, or in `error` why there are none: an error that is raised would be taken for a lost actor."""
        try:
            return {**self._shard(number), "error": ""}
        except Exception as error:
            known = known_failure(error, str(self.config.output)) or unforeseen(error, number)
            return {"shard": number, "studies": 0, "failed": 0, "seconds": 0.0, "error": to_json(known)}

    def _shard(self, number: int) -> dict[str, Any]:
        path = table.shard_path(self.plan.folder, number)
        began = time.monotonic()
        if not path.exists():  # a shard whose actor died between the rename and the reply is not done again
            planned = self.plan.shard(number)
            films = self._films(planned)
            with self.model:
                predictions = list(self.writer.write(films))
            table.write_shard(self.plan.folder, number, self._rows(planned, predictions))
        return {
            "shard": number,
            "studies": self.plan.rows_in(number),
            "failed": table.count_failed(path),
            "seconds": time.monotonic() - began,
        }

    def _rows(self, planned: list[Planned], predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
        """In the plan's order, so that the same shard gives the same file."""
        by_id = {p.study.study_id: p for p in predictions}
        data = self.config.data
        for one in planned:
            yield by_id[one.study.study_id].to_row(
                model=self.fingerprint, section=data.section, max_views=data.max_views
            )

    def _films(self, planned: list[Planned]) -> Iterator[tuple[Study, Films]]:
        """Films in the plan's order; decoding runs `decode_workers` chunks ahead, and starts now."""
        chunks = [planned[n : n + CHUNK] for n in range(0, len(planned), CHUNK)]

        ahead = 1 + self.config.generate.decode_workers
        waiting = deque(self._start(chunk) for chunk in chunks[:ahead])

        def stream() -> Iterator[tuple[Study, Films]]:
            for number, chunk in enumerate(chunks):
                decoded = self._decoded(chunk, waiting.popleft())
                if number + ahead < len(chunks):
                    waiting.append(self._start(chunks[number + ahead]))
                for one, pixels in zip(chunk, decoded, strict=True):
                    yield one.study, _films(pixels)

        return stream()

    def _start(self, chunk: list[Planned]) -> Any:
        data = self.config.data
        side = self.writer.processor.image_size
        return self.decode.remote(
            chunk, archive=self.archive, side=side, max_views=data.max_views, max_pixels=data.max_pixels
        )

    def _decoded(self, chunk: list[Planned], task: Any) -> list[Pixels]:
        """What a task has decoded. A film that kills its process, as broken ones can, costs its own study only."""
        try:
            decoded: list[Pixels] = ray.get(task)
            return decoded
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            if len(chunk) == 1:
                return ["decoding it ends the process"]
            return [self._decoded([one], self._start([one]))[0] for one in chunk]


def _films(pixels: Pixels) -> Films:
    if isinstance(pixels, str):
        return UnreadableFilm(pixels)
    return [Image.fromarray(film) for film in pixels]


def unforeseen(error: Exception, shard: int) -> MegptError:
    """An error that nothing here knows: its kind and place, never its message, which may quote a report."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return MegptError(
        f"shard {shard} failed with an unexpected {type(error).__name__}",
        where=f"{place.filename}:{place.lineno}, in {place.name}",
        next="run the same command again, which begins with this shard; if it comes back, report it",
    )
