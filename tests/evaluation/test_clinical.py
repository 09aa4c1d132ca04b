"""The clinical labeller.

- every observation: named, denied, doubted, in raw and in cleaned text
- negations that look like ones and are not, and that stop where they should
- sizes of heart and mediastinum: enlarged, borderline, normal; another organ's size is not theirs
- "No Finding" as CheXpert has it: no positive or uncertain finding but a device; a blank report has no label
- one label from several mentions: present over uncertain over absent
- the phantoms' reports mean what was drawn
- agreement with the people who coded the IU X-Ray reports
- nothing of a report is logged
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from megpt.data.cleaning import clean
from megpt.evaluation.clinical import Labeler, label_reports, labeler
from megpt.study import CHEXPERT

SENTENCES = {
    "Small left pleural effusion.": {"Pleural Effusion": 1},
    "There is no pneumothorax or pleural effusion.": {"Pneumothorax": 0, "Pleural Effusion": 0, "No Finding": 1},
    "No pneumothorax, effusion, or focal consolidation.": {
        "Pneumothorax": 0,
        "Pleural Effusion": 0,
        "Consolidation": 0,
        "No Finding": 1,
    },
    "No pneumothorax but a small right pleural effusion.": {"Pneumothorax": 0, "Pleural Effusion": 1},
    "No change in the small left effusion.": {"Pleural Effusion": 1},
    "The effusion is not significantly changed.": {"Pleural Effusion": 1},
    "Interval resolution of the left pleural effusion.": {"Pleural Effusion": 0, "No Finding": 1},
    "The left effusion has resolved.": {"Pleural Effusion": 0, "No Finding": 1},
    "The effusion has not resolved.": {"Pleural Effusion": 1},
    "Pneumothorax is not seen.": {"Pneumothorax": 0, "No Finding": 1},
    "The lungs are free of focal airspace disease.": {"Lung Opacity": 0, "No Finding": 1},
    "Lungs are clear without infiltrate.": {"Lung Opacity": 0, "No Finding": 1},
    "Pneumonia cannot be excluded.": {"Pneumonia": -1},
    "Cannot rule out pneumonia.": {"Pneumonia": -1},
    "Right basilar opacity may represent pneumonia.": {"Lung Opacity": 1, "Pneumonia": -1},
    "Bibasilar opacities, atelectasis versus pneumonia.": {"Lung Opacity": 1, "Atelectasis": -1, "Pneumonia": -1},
    "Atelectasis rather than pneumonia.": {"Atelectasis": 1, "Pneumonia": 0},
    "Possible nodule in the left apex.": {"Lung Lesion": -1},
    "A pulmonary nodule is seen in the left upper lobe.": {"Lung Lesion": 1},
    "Small XXXX lung nodule.": {"Lung Lesion": 1},
    "A calcified nodule is seen.": {},
    "The heart is mildly enlarged.": {"Cardiomegaly": 1},
    "The heart is not enlarged.": {"Cardiomegaly": 0, "No Finding": 1},
    "Heart size is at the upper limits of normal.": {"Cardiomegaly": 0, "No Finding": 1},
    "Borderline cardiomegaly.": {"Cardiomegaly": -1},
    "Heart size is borderline enlarged.": {"Cardiomegaly": -1},
    "Enlarged cardiac silhouette.": {"Cardiomegaly": 1},
    "No enlargement of the heart.": {"Cardiomegaly": 0, "No Finding": 1},
    "The heart is normal with a large effusion.": {"Cardiomegaly": 0, "Pleural Effusion": 1},
    "The pulmonary arteries are enlarged. Heart size is normal.": {"Cardiomegaly": 0},
    "Heart and mediastinum are enlarged.": {"Cardiomegaly": 1, "Enlarged Cardiomediastinum": 1},
    "The mediastinum is widened.": {"Enlarged Cardiomediastinum": 1},
    "Cardiac and mediastinal contours are within normal limits.": {
        "Cardiomegaly": 0,
        "Enlarged Cardiomediastinum": 0,
        "No Finding": 1,
    },
    "No effusion and the heart is enlarged.": {"Pleural Effusion": 0, "Cardiomegaly": 1},
    "Moderate interstitial edema.": {"Edema": 1},
    "Without evidence of heart failure.": {"Edema": 0, "No Finding": 1},
    "Soft tissue edema.": {"No Finding": 1},
    "Hydropneumothorax.": {"Pleural Effusion": 1, "Pneumothorax": 1},
    "Pericardial effusion.": {"No Finding": 1},
    "Old rib fractures.": {"Fracture": 1},
    "Apical pleural thickening.": {"Pleural Other": 1},
    "History of pneumonia.": {"No Finding": 1},
    "Right chest pacemaker is in place.": {"Support Devices": 1, "No Finding": 1},
    "The PICC line has been removed.": {"Support Devices": 0, "No Finding": 1},
    "Endotracheal tube above the carina. Left lower lobe consolidation.": {"Support Devices": 1, "Consolidation": 1},
    "No acute cardiopulmonary abnormality.": {"No Finding": 1},
    "The aorta is tortuous.": {},
}


@pytest.mark.parametrize("text", SENTENCES)
def test_sentence(text: str) -> None:
    assert labeler().label(text) == SENTENCES[text]


@pytest.mark.parametrize("text", SENTENCES)
def test_cleaned_sentence_keeps_its_positives(text: str) -> None:
    wanted = {name for name, value in SENTENCES[text].items() if value == 1}
    cleaned = labeler().label(clean(text, "r2gen-iu"))
    assert {name for name, value in cleaned.items() if value == 1} == wanted


def test_negation_stays_in_its_sentence() -> None:
    assert labeler().label("no pneumothorax . small effusion .") == {"Pneumothorax": 0, "Pleural Effusion": 1}
    assert labeler().label("No pneumothorax\n\nSmall effusion") == {"Pneumothorax": 0, "Pleural Effusion": 1}
    assert labeler().label("No evidence\nof effusion.")["Pleural Effusion"] == 0


def test_several_mentions_become_one_label() -> None:
    assert labeler().label("No effusion. Possible effusion.")["Pleural Effusion"] == -1
    assert labeler().label("Possible effusion. Small effusion. No effusion.")["Pleural Effusion"] == 1


@pytest.mark.parametrize("text", ["", "  ", " .", "...\n"])
def test_blank_report_has_no_label(text: str) -> None:
    assert labeler().label(text) == {}
    assert not label_reports([text]).any()


def test_positives_are_rows_of_chexpert() -> None:
    rows = label_reports(["Small effusion.", "Normal chest.", "Possible effusion."])
    assert rows.shape == (3, 14) and rows.dtype == bool
    assert [[name for name, there in zip(CHEXPERT, row, strict=True) if there] for row in rows] == [
        ["Pleural Effusion"],
        ["No Finding"],
        [],
    ]
    assert label_reports([]).shape == (0, 14)


def test_phantom_reports_mean_what_is_drawn() -> None:
    from megpt.demo.phantom.patient import draw_patient
    from megpt.demo.phantom.wording import write_report

    for index in range(400):
        patient = draw_patient(7, index)
        report = write_report(patient, 7)
        truth = {name for name, value in patient.labels(report.denied).items() if value == 1}
        for text in (report.findings, report.impression):
            assert {name for name, value in labeler().label(text).items() if value == 1} == truth, text


# Observation → the MeSH terms with which people coded the reports, and the least precision and recall.
CODED = {
    "Atelectasis": ({"Pulmonary Atelectasis"}, 0.90, 0.80),
    "Cardiomegaly": ({"Cardiomegaly"}, 0.90, 0.80),
    "Consolidation": ({"Consolidation"}, 0.75, 0.85),
    "Lung Opacity": ({"Opacity", "Infiltrate", "Airspace Disease", "Cicatrix"}, 0.90, 0.85),
    "No Finding": ({"normal"}, 0.75, 0.95),
    "Pleural Effusion": ({"Pleural Effusion"}, 0.90, 0.85),
    "Pneumothorax": ({"Pneumothorax", "Hydropneumothorax"}, 0.85, 0.75),
}


@pytest.mark.slow
def test_agrees_with_the_people_who_coded_the_iu_reports(real_data: Path) -> None:
    with (real_data / "iu_xray/indiana_reports.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"] + row["impression"]]
    found = label_reports([f"{row['findings']}\n\n{row['impression']}" for row in rows])
    for name, (terms, precision, recall) in CODED.items():
        truth = np.array([bool(terms & set(row["Problems"].split(";"))) for row in rows])
        ours = found[:, CHEXPERT.index(name)]
        assert (truth & ours).sum() >= precision * ours.sum(), name
        assert (truth & ours).sum() >= recall * truth.sum(), name


def test_no_report_text_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        Labeler().label("Zebrafinch effusion. Dr. Zebrafinch was told . No zebrafinch")
    captured = capfd.readouterr()
    assert "ebrafinch" not in (caplog.text + captured.out + captured.err)
