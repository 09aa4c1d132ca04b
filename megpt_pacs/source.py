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
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from megpt_pacs.client import Pacs, PacsError, dataset_of, text_of, texts_of, unusable
from megpt_pacs.settings import DicomWebOptions

THREADS, AHEAD, COMMIT_STUDIES, TELL_STUDIES = 8, 64, 500, 5_000
_TAGS = [f"{tag_for_keyword(name):08X}" for name in TAGS]
STUDY, SERIES, PATIENT, MODALITY = "0020000D", "0020000E", "00100020", "00080060"
IN_STUDY, IN_STUDY_MODALITIES = "00201208", "00080061"


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
        self._unread: list[_Listed] = []

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
        waiting: deque[Future[_Listed]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for study in self._studies(pacs):
                total += 1
                # A service that does not count a study's instances is asked for its headers every time.
                if study.held and index.known(study.path, study.held, 0):
                    continue
                new += 1
                waiting.append(pool.submit(_read, study, pacs, make_entry, self.data.modalities))
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
        for study in self._unread:
            name = study.uid if self.data.study_id == "uid" else ids.of("study", study.uid)
            yield Study(name, study.subject or ids.of("study", study.uid), split="", error=study.reason)

    def _take(self, study: _Listed, index: HeaderIndex) -> None:
        if study.reason:
            self._unread.append(replace(study, entries=[]))
        else:
            index.put(study.path, study.held, 0, study.entries)

    def _studies(self, pacs: Pacs) -> Iterator[_Listed]:
        """Each study that the PACS lists, once.

        It is not asked for modalities: Orthanc 1.10 counts the studies of other modalities among those of a page.
        """
        seen = nameless = 0
        try:
            for found in pacs.studies(self.options.filters(), page=self.options.page):
                uid, held = text_of(found, STUDY), text_of(found, IN_STUDY)
                if not UID.fullmatch(uid):
                    nameless += 1
                    continue
                seen += 1
                codes = frozenset(modality_code(code, "") for code in texts_of(found, IN_STUDY_MODALITIES))
                yield _Listed(uid, text_of(found, PATIENT), int(held) if held.isdecimal() else 0, codes)
                if seen == self.options.most:
                    break
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


@dataclass(frozen=True)
class _Listed:
    """A study as QIDO-RS lists it; then with its entries for the index, or with the reason why there are none."""

    uid: str
    patient: str
    held: int
    """Its instances, of all kinds; 0 if the PACS does not count them."""
    modalities: frozenset[str]
    entries: list[IndexEntry] = field(default_factory=list)
    subject: str = ""
    reason: str = ""

    @property
    def path(self) -> bytes:
        return b"studies/" + self.uid.encode()


def _read(study: _Listed, pacs: Pacs, make_entry: MakeEntry, modalities: tuple[str, ...]) -> _Listed:
    """The headers of a study's wanted series; of each other series, one entry that says its modality."""
    path, known = study.path, Header(study=study.uid, patient=study.patient)
    subject = make_entry(path, known).subject
    entries: list[IndexEntry] = []

    def leave_out(modality: str) -> None:
        entries.append(replace(make_entry(path, replace(known, modality=modality)), place=len(entries)))

    if study.modalities and study.modalities.isdisjoint(modalities):
        for modality in sorted(study.modalities):
            leave_out(modality)
        return replace(study, entries=entries, subject=subject)
    try:
        found = pacs.series(study.uid)
        if not found:
            raise PacsError("not in the PACS any more")
        for series in found:
            uid, said = text_of(series, SERIES), text_of(series, MODALITY)
            if said and (modality := modality_code(said, "")) not in modalities:
                leave_out(modality)
                continue
            for film in pacs.metadata(study.uid, uid):
                header = replace(header_of(dataset_of(film, _TAGS)), study=study.uid)
                member = f"series/{uid}/instances/{header.sop}".encode()
                entry = replace(make_entry(path, header), member=member, place=len(entries))
                if not header.sop:
                    entry = replace(entry, what="error", reason="DICOM film without a SOPInstanceUID")
                entries.append(entry)
    except PacsError as error:
        return replace(study, subject=subject, reason=error.reason)
    return replace(study, entries=entries, subject=subject)
