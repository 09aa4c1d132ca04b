"""Drawn chest films with findings of known kind, side and size, reports that say so, and an archive of both."""

from megpt.data.phantom.archive import write_archive, write_films, write_tables
from megpt.data.phantom.drawing import draw_film
from megpt.data.phantom.patient import OBSERVATIONS, Finding, Patient, draw_patient
from megpt.data.phantom.wording import Report, write_report

__all__ = [
    "OBSERVATIONS",
    "Finding",
    "Patient",
    "Report",
    "draw_film",
    "draw_patient",
    "write_archive",
    "write_films",
    "write_report",
    "write_tables",
]
