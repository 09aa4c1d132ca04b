"""Settings of the service that writes reports on request."""

from __future__ import annotations

from pydantic import Field

from megpt.settings import Positive, Section


class ServeConfig(Section):
    """films over HTTP → reports; `megpt serve` takes these also without the `serve.` in front."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs a token in MEGPT_SERVE_TOKEN."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    max_request_mb: Positive = 64
    """Largest request, in MiB; a larger one is answered with 413."""
    max_films: Positive = 8
    """Most films in one request."""
    max_in_flight: Positive = 64
    """Requests that are received or answered at once; a further one is answered with 429."""
    max_per_minute: Positive = 600
    """Requests for reports in a minute, from all clients together; a further one is answered with 429."""
