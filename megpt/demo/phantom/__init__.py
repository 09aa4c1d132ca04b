"""Drawn chest films with findings of known type, side and size, their reports, and an archive of both."""

from megpt.demo.phantom.archive import write_archive, write_films, write_tables
from megpt.demo.phantom.drawing import draw_film
from megpt.demo.phantom.patient import OBSERVATIONS, Finding, Patient, draw_patient
from megpt.demo.phantom.wording import DrawnReport, write_report

__all__ = [
    "OBSERVATIONS",
    "DrawnReport",
    "Finding",
    "Patient",
    "draw_film",
    "draw_patient",
    "write_archive",
    "write_films",
    "write_report",
    "write_tables",
]
