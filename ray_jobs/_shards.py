"""What runs inside the generate job's workers: the actor that writes a shard, and the task that decodes its films."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from PIL import Image

from megpt.config import Config
from megpt.data.decode import UnreadableFilm, load_films
from megpt.generation import table
from megpt.generation.plan import Plan, Planned, with_films
from megpt.generation.writer import Films, Prediction, ReportWriter
from megpt.study import Study

# Studies whose films one task decodes: small enough to start at once, large enough to pay for a task.
CHUNK = 32

Pixels = list[np.ndarray] | str


def decode(planned: list[Planned], *, side: int, max_views: int | None, max_pixels: int) -> list[Pixels]:
    """Films of each study as grey squares (side, side) uint8, or why there are none.

    The resize to the square is the processor's own, done here because CPU tasks are many and the engine's thread one.
    """
    decoded: list[Pixels] = []
    for study in with_films(planned):
        try:
            films = load_films(study, size=side, max_views=max_views, max_pixels=max_pixels)
            decoded.append([np.asarray(f.resize((side, side), Image.Resampling.BICUBIC)) for f in films])
        except UnreadableFilm as error:
            decoded.append(str(error.reason))
    return decoded


class ShardWorker:
    """Ray Data's actor: shard numbers in, one row of counts a shard out; the reports go to the shard's file.

    It is called from two threads. The lock lets one of them use the model; the other waits with its first films
    decoded, or writes its file.
    """

    def __init__(self, config: str, plan: Plan, fingerprint: str):
        import yaml

        self.config = Config.model_validate(yaml.safe_load(config))
        self.plan, self.fingerprint = plan, fingerprint
        self.model = threading.Lock()
        self.writer = ReportWriter(str(self.config.checkpoint), self.config.generate, self.config.seed)
        task: Any = decode  # Ray's types know functions without keywords only
        self.decode = ray.remote(task).options(num_cpus=1, scheduling_strategy="SPREAD", max_retries=-1)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._shard(int(number)) for number in batch["shard"]]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

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
        data = self.config.data
        chunks = [planned[n : n + CHUNK] for n in range(0, len(planned), CHUNK)]

        def start(chunk: list[Planned]) -> Any:
            return self.decode.remote(
                chunk, side=self.writer.processor.image_size, max_views=data.max_views, max_pixels=data.max_pixels
            )

        ahead = 1 + self.config.generate.decode_workers
        waiting = deque(start(chunk) for chunk in chunks[:ahead])

        def stream() -> Iterator[tuple[Study, Films]]:
            for number, chunk in enumerate(chunks):
                decoded = ray.get(waiting.popleft())
                if number + ahead < len(chunks):
                    waiting.append(start(chunks[number + ahead]))
                for one, pixels in zip(chunk, decoded, strict=True):
                    yield one.study, _films(pixels)

        return stream()


def _films(pixels: Pixels) -> Films:
    if isinstance(pixels, str):
        return UnreadableFilm(pixels)
    return [Image.fromarray(film) for film in pixels]
