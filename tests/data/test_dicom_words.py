"""DICOM headers: any bytes are read, and what their words say comes out in a fixed vocabulary.

- a view's position: by ViewPosition, else PatientOrientation, else the series' words; frontal, lateral or other
- a body part is the chest, another part by its defined term, or unsaid
- no text of a header is passed on as it is
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.data.sources.dicom.headers import HEAD_BYTES, UnreadableHeader, read_header
from megpt.data.sources.dicom.words import FRONTAL, LATERAL, MODALITIES, body_part, modality_code, position_of, side_of


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_a_header_none_or_unreadable(data, marked):
    data = b"\0" * 128 + b"DICM" + data if marked else data
    try:
        header = read_header(data[:HEAD_BYTES], lambda: data)
    except UnreadableHeader as error:
        assert marked and error.reason == "DICOM header that cannot be read"
    else:
        assert header is None or len(header.study) <= 64


@pytest.mark.parametrize(
    "view, orientation, words, position, side",
    [
        ("PA", [], [], "PA", "frontal"),
        ("ap ", [], [], "AP", "frontal"),
        ("LL", [], [], "LL", "lateral"),
        ("LATERAL", ["L", "F"], [], "LATERAL", "lateral"),
        ("LLD", [], [], "LLD", "other"),
        ("", ["L", "F"], [], "FRONTAL", "frontal"),
        ("", ["R", "F"], ["Thorax pa"], "PA", "frontal"),
        ("", ["L", "F"], ["lateral"], "FRONTAL", "frontal"),
        ("", ["A", "F"], ["Chest PA"], "LATERAL", "lateral"),
        ("", ["P", "FR"], [], "LATERAL", "lateral"),
        ("", [], ["W033 Chest P.A."], "PA", "frontal"),
        ("", [], ["CHEST_LAT"], "LATERAL", "lateral"),
        ("", [], ["Thorax a.p. liegend"], "AP", "frontal"),
        ("", [], ["PA and lateral"], "", "other"),
        ("", [], ["Chest", "postero-anterior"], "PA", "frontal"),
        ("", [], ["left lateral decubitus"], "DECUBITUS", "other"),
        ("", [], ["SMITH JOHN"], "", "other"),
        ("SMITH", [], [], "", "other"),
        ("", ["", ""], [], "", "other"),
    ],
)
def test_positions(view, orientation, words, position, side):
    assert position_of(view, orientation, words) == position
    assert side_of(position) == side


@pytest.mark.parametrize(
    "said, part",
    [
        *(("CHEST", "CHEST"), ("Thorax", "CHEST"), ("PORT CHEST", "CHEST"), ("", ""), ("UNKNOWN", "")),
        *(("HAND", "HAND"), ("L SPINE", "LSPINE"), ("CHESTABDOMEN", "ABDOMEN"), ("SMITH", "another part")),
    ],
)
def test_body_parts(said, part):
    assert body_part(said) == part


@given(st.text(max_size=30), st.lists(st.text(max_size=4), max_size=3), st.lists(st.text(max_size=30), max_size=3))
def test_words_are_never_passed_on(text, orientation, words):
    others = {"LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "OBLIQUE", "DECUBITUS", "LORDOTIC", ""}
    assert position_of(text, orientation, words) in FRONTAL | LATERAL | others
    assert modality_code(text, "") in MODALITIES | {"unknown modality"}
