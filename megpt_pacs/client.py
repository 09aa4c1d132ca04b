"""One DICOMweb service, asked with patience: QIDO-RS, WADO-RS and STOW-RS by dicomweb-client.

    pacs = Pacs("dicomweb://pacs:8042/dicom-web")
    for study in pacs.studies({"StudyDate": "20261126-"}, page=200): ...       # DICOM JSON
    data = pacs.film(study, series, instance)                                  # the file's bytes

An answer of 429, 502, 503 or 504, a connection that is refused or breaks, silence, and an answer that ends early are
tried again, `TRIES` times in all, with growing pauses (`Retry-After` is obeyed, within bounds). What is left is a
`PacsError`, whose reason quotes nothing of an answer. After `MOST_SILENT` requests in a row without an answer it is a
MegptError: then the PACS is down, and a job that went on would fail every study that is left.
"""

from __future__ import annotations

import functools
import importlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import requests
from pydicom.dataset import Dataset

from megpt.errors import InputError, MegptError
from megpt_pacs import credentials
from megpt_pacs.address import url_of

TRIES, PAUSE_S, LONGEST_PAUSE_S = 5, 0.5, 30.0
MOST_SILENT = 20
CONNECT_S = 10.0
# A film is given up when it has taken this many timeouts in all: a trickle of bytes never times out by itself.
SLOWEST = 10
MOST_BYTES = 1 << 30
AGAIN = (429, 502, 503, 504)
_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
T = TypeVar("T")


class PacsError(Exception):
    """What a PACS did not give. `status` is that of its answer, 0 without one; `silent` that it may do better later."""

    def __init__(self, reason: str, *, status: int = 0, silent: bool = False):
        super().__init__(reason, status, silent)
        self.reason, self.status, self.silent = reason, status, silent


class Pacs:
    """A DICOMweb service; safe to share between threads.

    Raises:
        InputError: `megpt[pacs]` is not installed, or the environment's credentials cannot be used.
    """

    def __init__(self, address: str):
        self.address = address
        self._timeout = credentials.timeout_s()
        self._client: Any = _client_class()(
            url_of(address), session=credentials.session(), permissive_uid=True, timeout=(CONNECT_S, self._timeout)
        )
        self._client.set_http_retry_params(retry=False)  # which knows neither broken connections nor Retry-After
        self._silent = 0

    # ---- QIDO-RS

    def studies(self, filters: Mapping[str, str], *, page: int) -> Iterator[dict[str, Any]]:
        """The studies that match, in DICOM JSON, page by page; one that two pages hold comes once."""
        seen: set[str] = set()
        offset = 0
        while True:
            ask = functools.partial(
                self._client.search_for_studies,
                limit=page,
                offset=offset,
                fields=["ModalitiesInStudy", "NumberOfStudyRelatedInstances"],
                search_filters=dict(filters),
            )
            found = self._json(ask)
            new = {uid: study for study in found if (uid := text_of(study, "0020000D")) not in seen}
            if not new and len(found) == page:
                raise PacsError(f"it gives the same {page} studies again: set data.options.page above their number")
            if not new:  # the end; or a service that gives all at once
                return
            seen.update(new)
            offset += len(found)
            yield from new.values()

    def series(self, study: str) -> list[dict[str, Any]]:
        """The series of a study."""
        return self._json(lambda: self._client.search_for_series(study, fields=["Modality"]))

    def find(self, study: str, instance: str) -> dict[str, Any] | None:
        """The instance of a study with this SOPInstanceUID; None if the study has none."""
        ask = functools.partial(
            self._client.search_for_instances, study_instance_uid=study, search_filters={"SOPInstanceUID": instance}
        )
        try:
            found = self._json(ask)
        except PacsError as error:
            if error.status == 404:
                return None
            raise
        return next((entry for entry in found if text_of(entry, "00080018") == instance), None)

    # ---- WADO-RS

    def metadata(self, study: str, series: str, instance: str | None = None) -> list[dict[str, Any]]:
        """The headers of a series, or of one instance of it."""
        if instance is None:
            return self._json(lambda: self._client.retrieve_series_metadata(study, series))
        return self._json(lambda: self._client.retrieve_instance_metadata(study, series, instance))

    def film(self, study: str, series: str, instance: str) -> bytes:
        """One instance as the file it is stored as."""
        url = f"{url_of(self.address)}/studies/{study}/series/{series}/instances/{instance}"
        return self._asked(lambda: self._file(url))

    # ---- STOW-RS

    def store(self, dataset: Dataset) -> None:
        """Store one instance. One that is stored already, by an attempt whose answer was lost, is not sent again."""
        study, instance = str(dataset.StudyInstanceUID), str(dataset.SOPInstanceUID)

        def attempt() -> None:
            if not attempts or self.find(study, instance) is None:
                attempts.append(1)
                answer = self._client.store_instances([dataset], study_instance_uid=study)
                if failed := answer.get("FailedSOPSequence"):
                    code = failed[0].get("FailureReason")
                    known = f" ({code:04X}H)" if isinstance(code, int) else ""
                    raise PacsError(f"the PACS does not store it{known}", status=200)

        attempts: list[int] = []
        self._asked(attempt)

    # ---- patience

    def _json(self, ask: Callable[[], Any]) -> list[dict[str, Any]]:
        """The data sets of an answer."""
        found = self._asked(ask)
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise PacsError("the answer of the PACS is not DICOM JSON")
        return found

    def _asked(self, ask: Callable[[], T]) -> T:
        failure = PacsError("")
        for number in range(TRIES):
            pause = _pause(None, number)
            try:
                answer = ask()
            except PacsError as error:
                failure = error
            except Exception as error:
                failure, pause = _failure(error, self._timeout), _pause(error, number)
            else:
                self._silent = 0
                return answer
            if not failure.silent:
                self._silent = 0
                raise failure from None
            if number < TRIES - 1:
                time.sleep(pause)
        self._silent += 1
        reason = f"{failure.reason} ({TRIES} tries)"
        if self._silent >= MOST_SILENT:
            raise MegptError(
                f"{self.address} gave no answer to {MOST_SILENT} requests in a row",
                cause=reason,
                next="when it answers again, run the same command again: it resumes",
            )
        raise PacsError(reason, status=failure.status, silent=True)

    def _file(self, url: str) -> bytes:
        """The one part of a multipart answer, or an answer that is the file itself."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        began = time.monotonic()
        with self._client._http_get(url, headers={"Accept": accept}, stream=True) as response:
            pieces, size = [], 0
            for piece in response.iter_content(1 << 20):
                pieces.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise PacsError(f"the answer of the PACS is larger than {MOST_BYTES >> 20} MiB")
                if time.monotonic() - began > SLOWEST * self._timeout:
                    raise PacsError(f"the PACS takes more than {SLOWEST * self._timeout:g} s for a film", silent=True)
            form = response.headers.get("Content-Type", "")
        body = b"".join(pieces)
        return _only_part(body, form) if form.lower().startswith("multipart/") else body


def _only_part(body: bytes, form: str) -> bytes:
    found = _BOUNDARY.search(form)
    if found is None:
        raise PacsError("the answer of the PACS is a multipart without a boundary")
    mark = b"--" + found[1].strip().encode("latin-1")
    start = body.find(mark)
    head = body.find(b"\r\n\r\n", start)
    end = body.find(b"\r\n" + mark, head + 2)
    if min(start, head, end) < 0:
        raise PacsError("the answer of the PACS ends early", silent=True)
    if not body.startswith(b"--", end + 2 + len(mark)):
        raise PacsError("the PACS answers with several files for one film")
    return body[head + 4 : end]


def _failure(error: Exception, timeout: float) -> PacsError:
    """What went wrong, in words that quote nothing of the answer."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 401:
            given = credentials.are_given()
            return PacsError(f"the PACS {'refuses the' if given else 'asks for'} credentials (401)", status=401)
        said = {403: "the PACS forbids it (403)", 404: "not in the PACS (404)", 410: "no longer in the PACS (410)"}
        return PacsError(said.get(status, f"the PACS answers {status}"), status=status, silent=status in AGAIN)
    if isinstance(error, requests.exceptions.SSLError):
        return PacsError("the PACS has no certificate that is trusted here")
    if isinstance(error, requests.Timeout):
        return PacsError(f"the PACS did not answer within {timeout:g} s", silent=True)
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return PacsError("the answer of the PACS ends early", silent=True)
    if isinstance(error, requests.ConnectionError):
        return PacsError("the PACS cannot be reached, or breaks the connection", silent=True)
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return PacsError("the answer of the PACS is not DICOM JSON", silent=True)
    return PacsError(f"the answer of the PACS cannot be read ({type(error).__name__})")


def _pause(error: Exception | None, number: int) -> float:
    """Seconds before the next attempt."""
    response = getattr(error, "response", None)
    said = response.headers.get("Retry-After", "") if response is not None else ""
    wanted = float(said) if said.isdecimal() else PAUSE_S * 2**number
    return min(wanted, LONGEST_PAUSE_S)


def _client_class() -> Any:
    return extra("dicomweb_client.api").DICOMwebClient


def extra(module: str) -> Any:
    """A module of the packages that `megpt[pacs]` brings.

    Raises:
        InputError: it is not installed here.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{module.partition('.')[0].replace('_', '-')} is not installed",
            cause="what speaks to a PACS is an extra",
            next="pip install 'megpt[pacs]', on every node",
        ) from None


def unusable(error: PacsError, address: str) -> InputError:
    """The error of a first request, after which nothing can be done."""
    if error.status in (401, 403):
        return InputError(
            f"{address}: {error.reason}",
            cause="the environment holds no credentials that it accepts",
            next=f"export {credentials.TOKEN}=…, or {credentials.USER} and {credentials.PASSWORD}, and run it again",
        )
    if error.status in (404, 405, 410):
        return InputError(
            f"no DICOMweb service at {address}",
            cause=f"the path is wrong: {error.reason}",
            next="give the path too, such as dicomweb://HOST:8042/dicom-web",
        )
    return InputError(f"{address}: {error.reason}", next="check host, port and TLS (docs/pacs.md), and run it again")


def dataset_of(entry: Mapping[str, Any], tags: Collection[str]) -> Dataset:
    """The data set of those tags of an answer in DICOM JSON; a value that cannot be read is left out."""
    dataset = Dataset()
    for tag in tags:
        if tag in entry:
            try:
                dataset.update(Dataset.from_json({tag: entry[tag]}))
            except Exception:  # pydicom raises anything on damaged input
                continue
    return dataset


def text_of(entry: Mapping[str, Any], tag: str) -> str:
    """The first value of a tag in DICOM JSON; "" if there is none."""
    return next(iter(texts_of(entry, tag)), "")


def texts_of(entry: Mapping[str, Any], tag: str) -> list[str]:
    """The values of a tag that are text or whole numbers."""
    try:
        values = list(entry[tag]["Value"])
    except (KeyError, TypeError):
        return []
    return [str(value).strip(" \0") for value in values if isinstance(value, str | int)]
