"""The generate job's actor, which has the model and writes a shard's file, and its decoding task.

Neither needs torch or Ray when it is imported: many processes run the task, and each starts soon.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from megpt.config import Config, GenerateConfig
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
from ray_jobs.generate.lane import Lane, LaneThread, ShardWork
from ray_jobs.imports import uncollected
from ray_jobs.runtime import require_gpu
from ray_jobs.telling import Teller

if TYPE_CHECKING:
    from megpt.generation.image_text import ImageTextWriter
    from megpt.generation.writer import Films, Prediction, ReportWriter

# Bytes of films that are decoded ahead of the model in a shard, and how many a study has where nobody limits them.
AHEAD_BYTES, VIEWS = 2**29, 2
# Times that a decoding task is begun again when its process dies, before its studies are tried one by one.
RETRIES = 3
# Studies whose films one task decodes: small enough to start at once, large enough to pay for a task.
CHUNK = 32

Pixels = list[np.ndarray] | str


def calls_per_actor(rules: GenerateConfig) -> int:
    """Shards that an actor has at once: those that its slots span, and one whose films are decoded meanwhile."""
    return 2 + rules.slots // rules.shard_size


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

    It is called from several threads. One more has the model, and takes the shards of all of them one behind the
    other; a call waits for its own, and writes its file. `ray_jobs.generate.here` does the same without Ray.
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
        self.metrics = self._metrics()
        checkpoint, rules, seed = str(self.config.checkpoint), self.config.generate, self.config.seed
        self.writer: ReportWriter | ImageTextWriter
        if is_own(local_folder(checkpoint)):
            self.writer = ReportWriter(checkpoint, rules, seed, device=self.device, llm=llm)
        else:
            self.writer = ImageTextWriter(checkpoint, rules, seed, device=self.device)
        self.decode = self._decoder(decode_options)
        if self.config.cluster.cpus_per_worker >= 2:  # else Ray's own setting of one thread is right
            torch.set_num_threads(int(self.config.cluster.cpus_per_worker))
        self.lane = self._started()

    def _started(self) -> LaneThread:
        return LaneThread(self._lane)

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
            # A shard whose actor died between the rename and the reply is not done again.
            if self.predictions.path(number).is_file():
                return self._counts(number)
            work = self.lane.submit(self._work(number))
            work.result()
        except Exception as error:
            return self._unfinished(number, error)
        return self._kept(work)

    def _lane(self, following: Callable[[], ShardWork | None]) -> Lane:
        def seen(prediction: Prediction) -> None:
            used = getattr(getattr(self.writer, "backend", None), "live", None)  # the engine's
            self.metrics.wrote(prediction.num_tokens, used=used, slots=self.config.generate.slots)

        return Lane(self.writer, following, seen)

    def _work(self, number: int) -> ShardWork:
        """A shard's studies, and their films, which are being decoded from now on."""
        listed = self.predictions.studies(number)
        return ShardWork(number, listed, self._films(listed), self._teller(number))

    def _kept(self, work: ShardWork) -> dict[str, Any]:
        """Counts of a shard whose reports are all written, with its file on disk; in `error` why it is not there."""
        try:
            self._write(work)
            return self._counts(work.number, context=work.context, seconds=work.seconds, waited=work.waited)
        except Exception as error:
            return self._unfinished(work.number, error)

    def _write(self, work: ShardWork) -> None:
        """Write a shard's file, in the list's order, so that the same reports give the same file."""
        by_id, data = {p.study.study_id: p for p in work.written}, self.config.data
        how = {"model": self.fingerprint, "section": data.section, "max_views": data.max_views}
        rows = (by_id[entry.study.study_id].to_row(**how) for entry in work.listed)
        self.predictions.write_shard(work.number, rows)
        self.metrics.waited(work.waited)

    def _counts(
        self, number: int, *, context: dict[str, int] | None = None, seconds: float = 0.0, waited: float = 0.0
    ) -> dict[str, Any]:
        return {
            "shard": number,
            "studies": self.predictions.count([number]),
            "reasons": json.dumps(self.predictions.reasons([number])),
            "seconds": seconds,
            "waited": waited,
            "context": json.dumps(context or {}),
            "error": "",
        }

    def _unfinished(self, number: int, error: Exception) -> dict[str, Any]:
        known = known_failure(error, str(self.config.output)) or unforeseen(error, number)
        nothing = {"shard": number, "studies": 0, "reasons": "{}", "seconds": 0.0, "waited": 0.0, "context": "{}"}
        return {**nothing, "error": to_json(known)}

    def _metrics(self) -> Any:
        """Of `ray_jobs.metrics`: how time and memory are spent, for Prometheus."""
        from ray_jobs.metrics import WriterMetrics

        return WriterMetrics()

    def _teller(self, number: int) -> Teller:
        return Teller(self.run, str(number))

    def _films(self, listed: list[Listed]) -> Iterator[tuple[Study, Films]]:
        """Films in the list's order; decoding runs ahead, and starts now."""
        chunks = [listed[n : n + CHUNK] for n in range(0, len(listed), CHUNK)]
        ahead = self._chunks_ahead()
        waiting = deque(self._start(chunk) for chunk in chunks[:ahead])

        def stream() -> Iterator[tuple[Study, Films]]:
            for number, chunk in enumerate(chunks):
                decoded = self._decoded(chunk, waiting.popleft())
                if number + ahead < len(chunks):
                    waiting.append(self._start(chunks[number + ahead]))
                for entry, pixels in zip(chunk, decoded, strict=True):
                    yield entry.study, _films(pixels)

        return stream()

    def _chunks_ahead(self) -> int:
        """As many as the engine may ask for at once, and one for each task that decodes; `AHEAD_BYTES` at most."""
        rules = self.config.generate
        films = CHUNK * (self.config.data.max_views or VIEWS) * self.writer.film_side**2
        return max(1 + rules.decode_workers, min(1 + math.ceil(rules.slots / CHUNK), AHEAD_BYTES // films))

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
