"""The web application: films in, reports out. It knows HTTP and films, and neither Ray nor the model.

    app = make_app(write, author, settings)

    GET  /             the page
    POST /v1/reports   films → the report as JSON, or with `Accept: text/event-stream` as it is written
    GET  /healthz      200 when reports can be written
    GET  /metrics      counts and times, for Prometheus

What comes in stays in memory until it is answered; no film, report or file name reaches a log, a metric or an error.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from megpt.config import Config
from megpt.data.one_study import one_study
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, load_film
from megpt.films.resize import to_square
from megpt.generation.answer import RESEARCH_ONLY, Author
from megpt.study import Study, View
from ray_jobs.serve.limits import Rate, Refused, is_loopback
from ray_jobs.serve.uploads import received

PREVIEW = 640
"""Shorter side of the film that the page shows, in pixels."""
EVENTS = "text/event-stream"
HEALTH_S = 30.0
SILENT = "the model does not answer"


class Write(Protocol):
    """Has a report written: drafts {"text", "prompt_id"}, then one {"answer"} or {"error"}."""

    def __call__(
        self, study_id: str, films: list[np.ndarray], drafts: bool
    ) -> AsyncGenerator[dict[str, Any], None]: ...


class Films(NamedTuple):
    """The films of a request."""

    study: Study
    squares: list[np.ndarray]
    """(side, side) uint8, of the films that are used."""
    previews: list[str]
    """JPEG, base64."""
    notes: list[str]
    """What is odd about them."""


class Service:
    """The application's state.

    Args:
        write: has the model write a report.
        side: asks the model for the side of the squares that it takes, in pixels; raises where it does not answer.
        token: what `Authorization: Bearer …` has to give; None for a service that only this machine reaches.
    """

    def __init__(self, write: Write, author: Author, side: Callable[[], Awaitable[int]], token: str | None = None):
        self.write, self.author, self.side, self.token = write, author, side, token
        self.config: Config = author.config
        self.settings = self.config.serve
        self.rate = Rate(self.settings.max_per_minute)
        self.pool = ThreadPoolExecutor(self.config.generate.decode_workers, thread_name_prefix="decode")
        self.page = (files("ray_jobs.serve") / "page.html").read_text(encoding="utf-8")
        self.registry = CollectorRegistry()
        self.requests = Counter("megpt_requests", "Requests for reports", ["status"], registry=self.registry)
        self.finished = Counter("megpt_reports", "Reports written", ["finish_reason"], registry=self.registry)
        self.films = Counter("megpt_films", "Films decoded", registry=self.registry)
        self.tokens = Counter("megpt_tokens", "Tokens written", registry=self.registry)
        self.seconds = Histogram("megpt_request_seconds", "Seconds from request to report", registry=self.registry)
        self.in_flight = Gauge("megpt_in_flight", "Requests received or answered now", registry=self.registry)
        self.busy = 0
        about = Gauge("megpt_model_info", "The model", ["fingerprint"], registry=self.registry)
        about.labels(author.model).set(1)

    # ---- routes ----------------------------------------------------------------------------------------------------

    async def home(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        about = {"model": self.author.model, "token": self.token is not None, "films": self.settings.max_films}
        page = self.page.replace("NONCE", nonce).replace("RESEARCH_ONLY", RESEARCH_ONLY)
        page = page.replace('"ABOUT"', json.dumps(about))
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    async def health(self, request: Request) -> Response:
        try:
            await asyncio.wait_for(self.side(), HEALTH_S)
        except Exception:
            return JSONResponse({"status": SILENT, "model": self.author.model}, 503)
        return JSONResponse({"status": "ok", "model": self.author.model})

    async def metrics(self, request: Request) -> Response:
        self.check(request)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def reports(self, request: Request) -> Response:
        """One study's report."""
        began = time.monotonic()
        try:
            self.check(request)
            self.rate.take()
            if self.busy >= self.settings.max_in_flight:
                raise Refused(429, f"more than {self.settings.max_in_flight} requests at once", 1)
        except Refused as refused:
            return self.refuse(refused)
        self.enter(1)
        try:
            wants_events = EVENTS in request.headers.get("accept", "")
            bodies = await received(request, self.settings)
            try:
                side = await asyncio.wait_for(self.side(), HEALTH_S)
            except Exception:
                raise Refused(503, SILENT, 10) from None
            loop = asyncio.get_running_loop()
            films = await loop.run_in_executor(self.pool, self.decoded, bodies, side, wants_events)
            self.films.inc(len(films.squares))
            if wants_events:
                return StreamingResponse(
                    self.events(films, began), media_type=EVENTS, headers={"Cache-Control": "no-store"}
                )
            async for event in self.write(films.study.study_id, films.squares, False):
                if "error" in event:
                    raise Refused(500, event["error"])
                if "answer" in event:
                    return self.json(200, self.completed(event["answer"], films, began))
            raise Refused(503, SILENT, 10)
        except Refused as refused:
            return self.refuse(refused)
        except Exception as error:  # its message may quote its input
            return self.refuse(Refused(500, f"unexpected {type(error).__name__}"))
        finally:
            self.enter(-1)

    async def events(self, films: Films, began: float) -> AsyncIterator[str]:
        """The answer as server-sent events: films, text (what is written so far), report; or error."""
        self.enter(1)
        try:
            yield _event("films", {"films": films.previews})
            async for event in self.write(films.study.study_id, films.squares, True):
                if "answer" in event:
                    self.requests.labels("200").inc()
                    yield _event("report", self.completed(event["answer"], films, began))
                elif "error" in event:
                    self.requests.labels("500").inc()
                    yield _event("error", {"error": event["error"]})
                else:
                    yield _event("text", event)
        except Exception as error:
            self.requests.labels("500").inc()
            yield _event("error", {"error": f"unexpected {type(error).__name__}"})
        finally:
            self.enter(-1)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Whether this request may ask.

        Raises:
            Refused: no token, or another one; or, without a token, a page of another site that asks through a browser.
        """
        if self.token is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise Refused(401, "send the header Authorization: Bearer TOKEN")
            return
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not is_loopback(request.url.hostname or "") or (origin and origin.partition("://")[2] != host):
            raise Refused(403, "without a token only this machine's own page and programs are answered")

    def decoded(self, bodies: list[bytes], side: int, previews: bool) -> Films:
        """The films as the model takes them.

        Raises:
            Refused: one is no film, cannot be decoded or is too large; or they are of several patients or studies.
        """
        data = self.config.data
        views = [View(f"film {number}", data=body) for number, body in enumerate(bodies, start=1)]
        notes: list[str] = []
        try:
            study = one_study(views, data, notes.append)
            used = study.views[: data.max_views]
            pictures = [load_film(view, size=side, max_pixels=data.max_pixels) for view in used]
            shown = [_preview(view, data.max_pixels) for view in used] if previews else []
        except InputError as error:
            raise Refused(422, "; ".join(filter(None, (error.what, error.cause)))) from None
        except UnreadableFilm as error:
            raise Refused(422, f"a film cannot be decoded: {error.reason}") from None
        if study.study_id == study.views[0].image_id:  # it has no UID; sampled reports of one film shall be equal
            study = Study(hashlib.sha256(b"".join(bodies)).hexdigest()[:32], views=study.views)
        return Films(study, [np.asarray(to_square(picture, side)) for picture in pictures], shown, notes)

    def completed(self, answer: dict[str, Any], films: Films, began: float) -> dict[str, Any]:
        """The answer, counted."""
        self.finished.labels(answer["finish_reason"]).inc()
        self.tokens.inc(answer["num_tokens"])
        self.seconds.observe(time.monotonic() - began)
        used = len(films.squares)
        return {**answer, "films": used, "films_unused": len(films.study.views) - used, "notes": films.notes}

    def enter(self, change: int) -> None:
        self.busy += change
        self.in_flight.set(self.busy)

    def json(self, status: int, tree: dict[str, Any], **headers: str) -> Response:
        self.requests.labels(str(status)).inc()
        return JSONResponse(tree, status, {"Cache-Control": "no-store", **headers})

    def refuse(self, refused: Refused) -> Response:
        headers = {"Retry-After": str(refused.retry_after_s)} if refused.retry_after_s else {}
        if refused.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return self.json(refused.status, {"error": refused.reason}, **headers)


def make_app(service: Service) -> Starlette:
    """The application."""

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            return service.refuse(error)
        status = getattr(error, "status_code", 500)
        return JSONResponse({"error": getattr(error, "detail", f"unexpected {type(error).__name__}")}, status)

    return Starlette(
        routes=[
            Route("/", service.home),
            Route("/healthz", service.health),
            Route("/metrics", service.metrics),
            Route("/v1/reports", service.reports, methods=["POST"]),
        ],
        exception_handlers={Refused: refused, 404: refused, 405: refused},
    )


def _event(name: str, tree: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(tree, ensure_ascii=False)}\n\n"


def _preview(view: View, max_pixels: int) -> str:
    file = io.BytesIO()
    load_film(view, size=PREVIEW, max_pixels=max_pixels).save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
