"""Who asks: a bearer token, or a name and a password, from the environment only; never printed, never written.

MEGPT_PACS_TOKEN                        Authorization: Bearer …
MEGPT_PACS_USER, MEGPT_PACS_PASSWORD    Authorization: Basic …
MEGPT_PACS_CA_BUNDLE                    certificates to trust, in place of the system's
MEGPT_PACS_TIMEOUT_S                    seconds to wait for the next piece of an answer (60)
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import requests
from requests.auth import AuthBase

from megpt.errors import InputError

TOKEN, USER, PASSWORD = "MEGPT_PACS_TOKEN", "MEGPT_PACS_USER", "MEGPT_PACS_PASSWORD"
CA_BUNDLE, TIMEOUT = "MEGPT_PACS_CA_BUNDLE", "MEGPT_PACS_TIMEOUT_S"
TIMEOUT_S = 60.0


class _Authorization(AuthBase):
    """The header, or none; set for each request, since requests would else look into ~/.netrc."""

    def __init__(self, header: str | None):
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._header:
            request.headers["Authorization"] = self._header
        return request


class _Session(requests.Session):
    """Trusts our own bundle where one is given, whatever REQUESTS_CA_BUNDLE says, and leaves wildcards as they are.

    Orthanc's plugin (1.7) takes the values of a query literally, `%2A` too.
    """

    def request(self, method: Any, url: Any, *arguments: Any, **values: Any) -> requests.Response:
        plain = str(url).replace("%2A", "*").replace("%3F", "?").replace("+", "%20")
        return super().request(method, plain, *arguments, **values)

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """After a redirect: credentials go to no other host, and none are looked for elsewhere."""
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if self.verify is not True:
            settings["verify"] = self.verify
        return settings


def are_given() -> bool:
    """Whether the environment holds any."""
    return any(os.environ.get(name) for name in (TOKEN, USER, PASSWORD))


def session() -> requests.Session:
    """An HTTP session with the credentials of the environment.

    Raises:
        InputError: half of a pair, both kinds, a token that no header can hold, or a bundle that is not there.
    """
    made = _Session()
    made.auth = _Authorization(_header())
    if bundle := os.environ.get(CA_BUNDLE):
        if not Path(bundle).exists():
            raise InputError(f"{CA_BUNDLE} names no file: {bundle}", next="give the path of a PEM file of certificates")
        made.verify = bundle
    return made


def timeout_s() -> float:
    """Seconds to wait for the next piece of an answer.

    Raises:
        InputError: not a positive number.
    """
    text = os.environ.get(TIMEOUT) or str(TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{TIMEOUT} = {text!r} is not a number of seconds", next=f"export {TIMEOUT}=60")
    return seconds


def _header() -> str | None:
    token, user, password = (os.environ.get(name, "").strip() for name in (TOKEN, USER, PASSWORD))
    if token and (user or password):
        raise InputError(f"both {TOKEN} and {USER} are set", next="unset one of them: a request carries one")
    if bool(user) != bool(password):
        raise InputError(
            f"{USER if user else PASSWORD} is set without the other half", next=f"set {USER} and {PASSWORD}"
        )
    if token:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(f"{TOKEN} is not a token", cause="it has a space or a character no header can hold")
        return f"Bearer {token}"
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None
