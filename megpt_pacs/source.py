"""A PACS as an archive: `source=dicomweb://HOST[:PORT]/PATH`.

What a study is, which films count and how they are ordered, and which ids leave this machine, is the `dicom` source's
(megpt/data/sources/dicom); only where headers and films come from differs. QIDO-RS gives the studies and their series,
the metadata of WADO-RS the headers, and no film is fetched before its study's turn comes. Studies are kept in the same
header index beside the plan, so the next day asks for the headers of new studies only, and of those whose number of
instances has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from megpt.config import DataConfig
from megpt.data.sources.dicom import DicomSource
from megpt.data.sources.dicom.headers import TAGS, UID, Header, header_of
from megpt.data.sources.dicom.identity import Pseudonyms
from megpt.data.sources.dicom.index import HeaderIndex, IndexEntry
from megpt.data.sources.dicom.scan import MakeEntry
from megpt.data.sources.dicom.words import modality_code
from megpt.errors import MegptError
from megpt.progress import log
from megpt.study import Study
from megpt_pacs.address import SCHEMES, checked
from megpt_pacs.client import Pacs, PacsError, dataset_of, text_of, unusable
from megpt_pacs.settings import DicomWebOptions

THREADS, AHEAD, COMMIT_STUDIES, TELL_STUDIES = 8, 64, 500, 5_000
_TAGS = [f"{tag_for_keyword(name):08X}" for name in TAGS]
STUDY, SERIES, PATIENT, MODALITY = "0020000D", "0020000E", "00100020", "00080060"
IN_STUDY, IN_SERIES = "00201208", "00201209"


class DicomWebSource(DicomSource):
    """The chest films of a PACS, by DICOMweb."""

    format = "dicomweb"
    about = "a PACS, by DICOMweb: source=dicomweb://HOST[:PORT]/PATH"
    unit = "studies of the PACS"
    schemes = tuple(SCHEMES)
    settings = DicomWebOptions

    def __init__(self, root: Path | str, data: DataConfig):
        super().__init__(checked(str(root), key="source"), data)
        self.whole = self.options.whole
        self._unread: list[tuple[str, str, str]] = []

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return False  # a path is no address

    def update_index(self, index: HeaderIndex, make_entry: MakeEntry) -> tuple[int, int]:
        """Ask for the studies, and for the headers of those that the index does not know.

        Raises:
            InputError: the PACS refuses the credentials, or there is none at this address.
            MegptError: it stopped answering; what was read so far is kept.
        """
        pacs = Pacs(self.place)
        total = new = 0
        self._unread = []
        waiting: deque[Future[_Headers]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for study, patient, held in self._studies(pacs):
                total += 1
                # A service that does not count a study's instances is asked for its headers every time.
                if held and index.known(_path(study), held, 0):
                    continue
                new += 1
                waiting.append(pool.submit(_headers, pacs, study, patient, held, make_entry, self.data.modalities))
                if len(waiting) >= AHEAD:
                    self._take(waiting.popleft().result(), index)
                if new % COMMIT_STUDIES == 0:
                    index.commit()
                if new % TELL_STUDIES == 0:
                    log(f"dicomweb: headers of {new} new studies asked for")
            while waiting:
                self._take(waiting.popleft().result(), index)
        index.forget_unseen()
        if self._unread:
            log(f"dicomweb: the headers of {len(self._unread)} studies could not be read: they are error rows")
        return total, new

    def locate(self, entry: IndexEntry) -> str:
        return f"{self.place}/{entry.path.decode()}/{(entry.member or b'').decode()}"

    def unlisted(self, ids: Pseudonyms) -> Iterator[Study]:
        for study, subject, reason in self._unread:
            name = study if self.data.study_id == "uid" else ids.of("study", study)
            yield Study(name, subject or ids.of("study", study), split="", error=reason)

    def _take(self, headers: _Headers, index: HeaderIndex) -> None:
        if headers.reason:
            self._unread.append((headers.study, headers.subject, headers.reason))
        else:
            index.put(_path(headers.study), headers.held, 0, headers.entries)

    def _studies(self, pacs: Pacs) -> Iterator[tuple[str, str, int]]:
        """UID, PatientID and number of instances of each study that has one of the wanted modalities, once."""
        seen: set[str] = set()
        nameless = 0
        for modality in self.data.modalities:
            filters = {**self.options.filters(), "ModalitiesInStudy": modality}
            try:
                for found in pacs.studies(filters, page=self.options.page):
                    study, held = text_of(found, STUDY), text_of(found, IN_STUDY)
                    if not UID.fullmatch(study):
                        nameless += 1
                    elif study not in seen:
                        seen.add(study)
                        yield study, text_of(found, PATIENT), int(held) if held.isdecimal() else 0
                    if self.options.most is not None and len(seen) >= self.options.most:
                        return
            except PacsError as error:
                if seen:
                    raise MegptError(
                        f"{self.place} stopped in the middle of its list of studies",
                        cause=error.reason,
                        next="run the same command again: headers that were read are kept",
                    ) from None
                raise unusable(error, self.place) from None
        if nameless:
            self.ignored["studies without a StudyInstanceUID"] = nameless


class _Headers:
    """What the PACS says of one study: entries of the index, or why there are none."""

    def __init__(self, study: str, subject: str, held: int):
        self.study, self.subject, self.held, self.reason = study, subject, held, ""
        self.entries: list[IndexEntry] = []


def _path(study: str) -> bytes:
    return b"studies/" + study.encode()


def _headers(
    pacs: Pacs, study: str, patient: str, held: int, make_entry: MakeEntry, modalities: tuple[str, ...]
) -> _Headers:
    """The headers of a study's wanted series; of each other series, one entry that says its modality."""
    path = _path(study)
    headers = _Headers(study, make_entry(path, Header(patient=patient)).subject, held)
    try:
        found = pacs.series(study)
        if not found:
            raise PacsError("the study is not in the PACS any more")
        for series in found:
            uid, said = text_of(series, SERIES), text_of(series, MODALITY)
            modality = modality_code(said, "")
            if said and modality not in modalities:
                other = Header(study=study, patient=patient, modality=modality)
                headers.entries.append(replace(make_entry(path, other), place=len(headers.entries)))
                continue
            for film in pacs.metadata(study, uid):
                header = replace(header_of(dataset_of(film, _TAGS)), study=study)
                member = f"series/{uid}/instances/{header.sop}".encode()
                what = {} if header.sop else {"what": "error", "reason": "DICOM film without a SOPInstanceUID"}
                entry = replace(make_entry(path, header), member=member, place=len(headers.entries), **what)
                headers.entries.append(entry)
    except PacsError as error:
        headers.reason = error.reason
    return headers
