"""The films that somebody hands over together, as one study: on the command line, or in one request.

    study = one_study([View("a.dcm", uri="a.dcm"), View("b.dcm", uri="b.dcm")], config.data, log)

An archive says which films belong together. Here only their DICOM headers can: films of two patients or of two studies
never become one report. Pictures without a header are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from megpt.config import DataConfig
from megpt.data.positions import side_of
from megpt.data.sources.dicom.headers import HEAD_BYTES, MOST_BYTES, Header, UnreadableHeader, read_header
from megpt.data.sources.dicom.words import CHEST, FOR_PROCESSING
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, check_film, opened
from megpt.study import Study, View

SIDES = ("frontal", "lateral", "other", "")
NEXT_FILM = "give JPEG, PNG or DICOM files of one chest X-ray study"


def one_study(views: Sequence[View], data: DataConfig, note: Callable[[str], None]) -> Study:
    """The study of these films, in the order that an archive of them would have.

    Only headers are read. The study's id is its StudyInstanceUID if the films have one.

    Args:
        views: the films; each `image_id` is what an error calls it by.
        note: is told what is odd about a film that is used all the same.

    Raises:
        InputError: no film; one that is missing, not a film, too large, no chest film by its header, or given twice; or
            films of several patients or studies. The text quotes nothing from a header but a modality or body part.
    """
    if not views:
        raise InputError("no film is given", next=NEXT_FILM)
    headers = [_header(view, data) for view in views]
    named = [(view.image_id, header) for view, header in zip(views, headers, strict=True) if header]
    _refuse_several(named, "patient", "patients", "one report is about one patient")
    _refuse_several(named, "study", "studies", "films of two examinations do not show one state of the chest")
    seen: dict[str, str] = {}
    for name, header in named:
        if header.sop in seen:
            raise InputError(
                f"{seen[header.sop]} and {name} are one film", cause="one SOPInstanceUID", next="give each film once"
            )
        if header.sop:
            seen[header.sop] = name
    for name, header in named:
        if header.object == FOR_PROCESSING:
            note(f"{name} is FOR PROCESSING by its header: detector values, which may look unlike any film")
    films = list(views)
    if all(headers):
        order = sorted(zip(headers, views, strict=True), key=_place)
        films = [replace(view, position=header.position) for header, view in order if header]
    study = next((header.study for _, header in named if header.study), "")
    return Study(study or films[0].image_id, views=tuple(films))


def _place(film: tuple[Header | None, View]) -> tuple[int, int, str]:
    header = film[0] or Header()
    return SIDES.index(side_of(header.position)), header.number, header.sop


def _header(view: View, data: DataConfig) -> Header | None:
    """The header of a DICOM film; None for a picture, and for a data set without any identifier."""
    try:
        check_film(view, max_pixels=data.max_pixels)
        kind, file = opened(view)
        with file:
            if kind != "dicom":
                return None
            head = file.read(HEAD_BYTES)
            header = read_header(head, whole=lambda: head + file.read(MOST_BYTES - len(head)))
    except (UnreadableFilm, UnreadableHeader) as error:
        raise InputError(f"{view.image_id} cannot be used: {error.reason}", next=NEXT_FILM) from None
    if header is not None and (what := _no_chest_film(header, data)):
        raise InputError(
            f"{view.image_id} is no chest film",
            cause=f"its header says {what}",
            next="set data.modalities if it is one all the same" if what.startswith("modality") else NEXT_FILM,
        )
    return header


def _no_chest_film(header: Header, data: DataConfig) -> str:
    """What a header says the image is, if that is no chest film; a header that says nothing is believed."""
    if header.object and header.object != FOR_PROCESSING:
        return header.object
    if header.modality and header.modality not in data.modalities:
        return f"modality {header.modality}"
    return "" if header.body in ("", CHEST) else f"body part {header.body}"


def _refuse_several(named: Sequence[tuple[str, Header]], field: str, plural: str, cause: str) -> None:
    known = [(name, getattr(header, field)) for name, header in named if getattr(header, field)]
    for name, value in known[1:]:
        if value != known[0][1]:
            raise InputError(
                f"{known[0][0]} and {name} are of two {plural}",
                where="their DICOM headers",
                cause=cause,
                next="give the films of one study at a time; `megpt generate source=FOLDER` reads a whole archive",
            )
