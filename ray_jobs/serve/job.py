"""Reports on request, on Ray Serve: `megpt serve checkpoint=runs/checkpoint`, then open http://127.0.0.1:8000.

    megpt serve checkpoint=runs/checkpoint port=9000
    MEGPT_SERVE_TOKEN=… megpt serve checkpoint=runs/checkpoint host=0.0.0.0 cluster.gpus_per_worker=1

`Front` has the web application: it checks what comes in and decodes films. `cluster.num_workers` `Writer`s have the
model, and write the reports of all requests together, each in the next free slot of its engine. Nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from megpt.config import Config
from megpt.errors import InputError, MegptError
from megpt.generation.answer import RESEARCH_ONLY, Author
from megpt.model.checkpoint.decoding import RULES, described
from megpt.progress import log
from megpt.study import Study
from ray_jobs.failures import known_failure
from ray_jobs.imports import uncollected
from ray_jobs.job import absolute
from ray_jobs.placement import check_resources, require_resources
from ray_jobs.runtime import cluster
from ray_jobs.stopping import deferred

TOKEN = "MEGPT_SERVE_TOKEN"
LEAST_TOKEN = 16
APP, FRONT, WRITER = "megpt", "front", "writer"
LOOK_EVERY_S = 5.0


class Writer:
    """A replica with the model."""

    def __init__(self, author: Author, llm: str | None):
        with uncollected():
            import torch
            from PIL import Image

            from megpt.generation.live import Draft, LiveWriter
            from megpt.generation.writer import ReportWriter
        self.author, self.draft, self.image = author, Draft, Image
        config = author.config
        if config.cluster.cpus_per_worker >= 2:  # else Ray's own setting of one thread is right
            torch.set_num_threads(int(config.cluster.cpus_per_worker))
        self.live = LiveWriter(ReportWriter(author.folder, config.generate, config.seed, llm=llm))

    def side(self) -> int:
        """Side of the squares that the model takes, in pixels."""
        return int(self.live.writer.processor.image_size)

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if not self.live.alive:
            raise RuntimeError("the model's thread has ended")

    async def write(self, study_id: str, films: list[np.ndarray], drafts: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Drafts, then the answer or an error, as `ray_jobs.serve.app.Write`."""
        told: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Any) -> None:  # called from the model's thread
            with contextlib.suppress(RuntimeError):  # the replica is ending, and its loop has
                loop.call_soon_threadsafe(told.put_nowait, event)

        pictures = [self.image.fromarray(film) for film in films]
        request = self.live.submit(Study(study_id), pictures, tell, drafts=drafts)
        try:
            while isinstance(event := await told.get(), self.draft):
                yield {"text": event.text, "prompt_id": event.prompt_id}
            yield {"error": event.error} if event.error else {"answer": self.author.answer(event)}
        finally:
            request.cancelled = True


class Serve:
    """Serves until it is stopped."""

    name = "serve"
    reads = (
        *("checkpoint", "seed", "model.llm", "data.max_views", "data.max_pixels", "data.modalities", "serve"),
        *("generate.backend", "generate.precision", "generate.slots", "generate.decode_workers"),
        *(f"generate.{rule}" for rule in RULES),
    )
    always = ("cluster",)

    @staticmethod
    def run(config: Config, *, dry_run: bool = False) -> int:
        """Serve until Ctrl-C or SIGTERM.

        Raises:
            InputError: no checkpoint, a port in use, the extra is not installed, or no token where others can connect.
            MegptError: the model cannot be loaded, or the service has failed.
        """
        config = absolute(config)
        token = checked_token(config)
        try:
            from ray import serve
        except ImportError:
            raise InputError("Ray Serve is not installed", next='pip install "megpt[serve]"') from None
        author = Author.of(config)
        check_port(config)
        log(f"serve: {author.folder}, fingerprint {author.model}")
        log(f"serve: decoding: {described(author.config.generate, author.origins)}")
        if dry_run:
            check_resources(config.cluster)
            return 0
        with cluster(config.cluster), deferred() as stop:
            require_resources(config.cluster)
            try:
                start(author, token)
                log(f"serve: http://{config.serve.host}:{config.serve.port}  (Ctrl-C ends it). {RESEARCH_ONLY}")
                while not stop.wait(LOOK_EVERY_S):
                    state = serve.status().applications[APP]
                    if state.status not in ("RUNNING", "DEPLOYING", "UNHEALTHY"):
                        raise MegptError(f"the service has ended: {state.status}", next="see Ray's session folder")
            finally:
                log("serve: stopping")
                serve.shutdown()
        return 0  # not reached: `deferred` raises what stopped the loop


def start(author: Author, token: str | None) -> None:
    """Start both deployments on the cluster, and return when reports can be written."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    config = author.config
    llm = config.model.llm if "model.llm" in config.named else None
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.serve.host, "port": config.serve.port}, logging_config=quiet)

    def front() -> Any:
        """Called in the replica."""
        from ray_jobs.serve.app import Service, make_app

        writer: Any = serve.get_deployment_handle(WRITER, app_name=APP)

        async def write(study_id: str, films: list[np.ndarray], drafts: bool) -> AsyncGenerator[dict[str, Any], None]:
            async for event in writer.options(stream=True).write.remote(study_id, films, drafts):
                yield event

        return make_app(Service(write, author, writer.side.remote, token))

    cpus, gpus = config.cluster.cpus_per_worker, config.cluster.gpus_per_worker
    most, least = config.cluster.max_workers, config.cluster.min_workers
    replicas: dict[str, Any] = {"num_replicas": most}
    if least < most:
        replicas = {"autoscaling_config": {"min_replicas": least, "max_replicas": most}}
    # Requests are refused in the web application, so nothing waits or is refused between it and the model.
    many = 4 * config.serve.max_in_flight
    model: Any = serve.deployment(
        name=WRITER,
        max_ongoing_requests=many,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        logging_config=quiet,
        **replicas,
    )(Writer)
    web: Any = serve.deployment(
        name=FRONT, max_ongoing_requests=many, ray_actor_options={"num_cpus": 0}, logging_config=quiet
    )(serve.ingress(front)(_Front))
    try:
        serve.run(web.bind(model.bind(author, llm)), name=APP, logging_config=quiet)
    except Exception as error:  # Ray Serve raises a plain one, with the worker's as text
        raise known_failure(error) or MegptError(
            "the model cannot be loaded", next="`megpt report FILM checkpoint=…` shows why"
        ) from None


class _Front:
    """The deployment of the web application; its argument is there so that the model is deployed first."""

    def __init__(self, writer: Any):
        self.writer = writer


def checked_token(config: Config) -> str | None:
    """The token that clients have to send.

    Raises:
        InputError: there is none, or a short one, though other machines can connect.
    """
    from ray_jobs.serve.limits import is_loopback

    token = os.environ.get(TOKEN, "").strip() or None
    if token is not None and len(token) < LEAST_TOKEN:
        raise InputError(
            f"{TOKEN} has fewer than {LEAST_TOKEN} characters",
            cause="a short token can be guessed",
            next=f'export {TOKEN}="$(openssl rand -hex 32)"',
        )
    if token is None and not is_loopback(config.serve.host):
        raise InputError(
            f"serve.host = {config.serve.host!r} can be reached from other machines, and there is no token",
            cause="whoever can connect could have reports written",
            next=f'export {TOKEN}="$(openssl rand -hex 32)", and give it to clients; or leave serve.host at 127.0.0.1',
        )
    return token


def check_port(config: Config) -> None:
    """Refuse an address where nothing can listen, or where something does."""
    host, port = config.serve.host, config.serve.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}",
            cause=f"{error.strerror or type(error).__name__}: it is taken, or no address of this machine",
            next="choose another one: port=8001",
        ) from None
