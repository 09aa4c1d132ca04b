"""The generate job's actor, which has the model and writes a shard's file, and its decoding task.

Neither needs torch or Ray when it is imported: many processes run the task, and each starts soon.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from megpt.config import Config
from megpt.data.sources.base import check_mounted
from megpt.data.studies import Listed, with_films
from megpt.errors import MegptError, to_json
from megpt.films.decode import FORBIDDEN, MISSING, UnreadableFilm, load_films
from megpt.films.resize import to_square
from megpt.generation.predictions import Predictions
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.fingerprint import is_own
from megpt.places import place
from megpt.study import Study
from ray_jobs.failures import known_failure
from ray_jobs.imports import uncollected
from ray_jobs.runtime import require_gpu
from ray_jobs.telling import Teller

if TYPE_CHECKING:
    from megpt.generation.image_text import ImageTextWriter
    from megpt.generation.writer import Films, Prediction, ReportWriter

# A shard's films are decoded while the one before it is generated: two calls in flight, one of them on the model.
CALLS_PER_ACTOR = 2
# Times that a decoding task is begun again when its process dies, before its studies are tried one by one.
RETRIES = 3
# Studies whose films one task decodes: small enough to start at once, large enough to pay for a task.
CHUNK = 32

Pixels = list[np.ndarray] | str


def decode(
    listed: list[Listed], *, archive: str, side: int, square: bool, max_views: int | None, max_pixels: int
) -> list[Pixels]:
    """Films of each study as grey pictures (h, w) uint8, or why there are none.

    Args:
        side: the shorter side, at most; with `square`, both.

    The films are squared here, before the processor would do it: there are many CPU tasks, but only one engine thread.

    Raises:
        MegptError: films are missing because this node does not see the archive.
    """
    decoded: list[Pixels] = []
    for study in with_films(listed):
        try:
            films = load_films(study, size=side, max_views=max_views, max_pixels=max_pixels)
            decoded.append([np.asarray(to_square(film, side) if square else film) for film in films])
        except UnreadableFilm as error:
            decoded.append(str(error.reason))
    if any(isinstance(pixels, str) and pixels.startswith((MISSING, FORBIDDEN)) for pixels in decoded):
        check_mounted(place(archive))
    return decoded


class ShardWorker:
    """Ray Data's actor: shard numbers in, one row of counts a shard out; the reports go to the shard's file.

    It is called from two threads. The lock lets one of them use the model; the other waits with its first films
    decoded, or writes its file. `ray_jobs.generate.here` does the same without Ray.
    """

    device: str | None = None
    """The model's: by default the first GPU that the process sees, or else the CPU."""

    def __init__(
        self,
        config: str,
        predictions: Predictions,
        archive: str,
        fingerprint: str,
        decode_options: dict[str, Any],
        run: str = "",
        llm: str | None = None,
    ):
        # Here and not above: the command that starts actors needs no torch, which takes seconds to import.
        with uncollected():
            import torch
            import yaml

            from megpt.generation.image_text import ImageTextWriter
            from megpt.generation.writer import ReportWriter
            from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor  # noqa: F401 (the writer's)

        self.config = Config.model_validate(yaml.safe_load(config))
        require_gpu(self.config.cluster)
        self.predictions, self.archive, self.fingerprint, self.run = predictions, archive, fingerprint, run
        self.model, self.metrics = threading.Lock(), self._metrics()
        checkpoint, rules, seed = str(self.config.checkpoint), self.config.generate, self.config.seed
        self.writer: ReportWriter | ImageTextWriter
        if is_own(local_folder(checkpoint)):
            self.writer = ReportWriter(checkpoint, rules, seed, device=self.device, llm=llm)
        else:
            self.writer = ImageTextWriter(checkpoint, rules, seed, device=self.device)
        self.decode = self._decoder(decode_options)
        if self.config.cluster.cpus_per_worker >= 2:  # else Ray's own setting of one thread is right
            torch.set_num_threads(int(self.config.cluster.cpus_per_worker))

    def _decoder(self, options: dict[str, Any]) -> Any:
        """What decodes."""
        import ray

        task: Any = decode  # Ray's types know functions without keywords only
        return ray.remote(task).options(scheduling_strategy="SPREAD", max_retries=RETRIES, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._answer(int(number)) for number in batch["shard"]]
        return {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}

    def _answer(self, number: int) -> dict[str, Any]:
        """Counts, or in `error` why there are none: an error that is raised would be taken for a lost actor."""
        try:
            return {**self._shard(number), "error": ""}
        except Exception as error:
            known = known_failure(error, str(self.config.output)) or unforeseen(error, number)
            nothing = {"shard": number, "studies": 0, "reasons": "{}", "seconds": 0.0, "context": "{}"}
            return {**nothing, "error": to_json(known)}

    def _shard(self, number: int) -> dict[str, Any]:
        began, context = time.monotonic(), {}
        # A shard whose actor died between the rename and the reply is not done again.
        if not self.predictions.path(number).is_file():
            listed, films = self._begun(number)
            with self.model:
                self.writer.context_counts.clear()
                written: list[Prediction] = []
                tell = self._teller(number)
                for prediction in self.writer.write(films):
                    written.append(prediction)
                    tell(prediction.error)
                    used = getattr(getattr(self.writer, "backend", None), "live", None)  # the engine's
                    self.metrics.wrote(prediction.num_tokens, used=used, slots=self.config.generate.slots)
                context = dict(self.writer.context_counts)
            self.predictions.write_shard(number, self._rows(listed, written))
        return {
            "shard": number,
            "studies": self.predictions.count([number]),
            "reasons": json.dumps(self.predictions.reasons([number])),
            "seconds": time.monotonic() - began,
            "context": json.dumps(context),
        }

    def _metrics(self) -> Any:
        """Of `ray_jobs.metrics`: how time and memory are spent, for Prometheus."""
        from ray_jobs.metrics import WriterMetrics

        return WriterMetrics()

    def _teller(self, number: int) -> Teller:
        return Teller(self.run, str(number))

    def _begun(self, number: int) -> tuple[list[Listed], Iterator[tuple[Study, Films]]]:
        """A shard's studies, and their films, which are being decoded from now on."""
        listed = self.predictions.studies(number)
        return listed, self._films(listed)

    def _rows(self, listed: list[Listed], predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
        """In the list's order, so that the same shard gives the same file."""
        by_id = {p.study.study_id: p for p in predictions}
        data = self.config.data
        for entry in listed:
            yield by_id[entry.study.study_id].to_row(
                model=self.fingerprint, section=data.section, max_views=data.max_views
            )

    def _films(self, listed: list[Listed]) -> Iterator[tuple[Study, Films]]:
        """Films in the list's order; decoding runs `decode_workers` chunks ahead, and starts now."""
        chunks = [listed[n : n + CHUNK] for n in range(0, len(listed), CHUNK)]

        ahead = 1 + self.config.generate.decode_workers
        waiting = deque(self._start(chunk) for chunk in chunks[:ahead])

        def stream() -> Iterator[tuple[Study, Films]]:
            for number, chunk in enumerate(chunks):
                began = time.monotonic()
                decoded = self._decoded(chunk, waiting.popleft())
                self.metrics.waited(time.monotonic() - began)
                if number + ahead < len(chunks):
                    waiting.append(self._start(chunks[number + ahead]))
                for entry, pixels in zip(chunk, decoded, strict=True):
                    yield entry.study, _films(pixels)

        return stream()

    def _how(self) -> dict[str, Any]:
        """How the model wants its films: the keywords of `decode`."""
        data, writer = self.config.data, self.writer
        films = {"side": writer.film_side, "square": writer.squares, "max_pixels": data.max_pixels}
        return {"archive": self.archive, "max_views": data.max_views, **films}

    def _start(self, chunk: list[Listed]) -> Any:
        """Have films decoded; returns what `_result` waits for."""
        return self.decode.remote(chunk, **self._how())

    def _result(self, task: Any) -> list[Pixels] | None:
        """What a task has decoded; None where its process died."""
        import ray

        try:
            decoded: list[Pixels] = ray.get(task)
            return decoded
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            return None

    def _decoded(self, chunk: list[Listed], task: Any) -> list[Pixels]:
        """What a task has decoded. A film that kills its process, as broken ones can, costs its own study only."""
        if (decoded := self._result(task)) is not None:
            return decoded
        if len(chunk) == 1:
            return ["decoding it ends the process"]
        return [self._decoded([entry], self._start([entry]))[0] for entry in chunk]


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
