"""The layouts of public archives, each as a tiny archive.

- MIMIC-CXR: JPEG and DICOM trees, tables gzipped or not, rows out of order, no tables at all; reports in a zip (read
  without extracting), a folder, or between the films; `validate` is `val`; CheXpert and NegBio labels; sections
- R2Gen: an entry per study (IU X-Ray, also under Open-i's file names), or per image (MIMIC-CXR: grouped by study)
- IU X-Ray from Kaggle and from Open-i (a document type, with its entities, is refused)
- ReXrank as an object or a list; NIH with one image folder or twelve
- damaged tables are errors that name file and column
"""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest
from make_films import jpeg, png, write

from megpt.config import DataConfig
from megpt.data.sources import open_source
from megpt.data.sources.reading import parse_report
from megpt.errors import InputError
from megpt.study import CHEXPERT


def read(path, **data):
    source = open_source(path, data=DataConfig(**data))
    studies = list(source.studies())
    assert studies == list(source.studies()), "a second reading gives the same"
    assert len(source.fingerprint()) == 16
    return source.format, studies


# --- reports

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough: rule out pneumonia.

 FINDINGS:

 There is no focal consolidation.  Note: the
 heart is normal.

 IMPRESSION:

 1. No acute process.
"""


def test_sections_of_a_report():
    report = parse_report(REPORT)
    assert report.findings == "There is no focal consolidation. Note: the heart is normal."
    assert report.impression == "1. No acute process."
    assert report.text == f"{report.findings} {report.impression}"


@pytest.mark.parametrize(
    "raw, text, findings, impression",
    [
        ("FINDINGS: Clear.", "Clear.", "Clear.", None),
        ("CONCLUSION: Clear.\n", "Clear.", None, "Clear."),
        (" FINDINGS AND IMPRESSION:  Clear.", "Clear.", "Clear.", None),
        ("EXAMINATION: CHEST\n\nHISTORY: Cough.\n\nThe lungs\nare clear.\n", "The lungs are clear.", None, None),
        ("The lungs are clear.", "The lungs are clear.", None, None),
        ("", None, None, None),
        ("FINDINGS:\n\nIMPRESSION:\n", None, None, None),
    ],
)
def test_reports_without_all_sections(raw, text, findings, impression):
    report = parse_report(raw)
    assert (report.text, report.findings, report.impression) == (text, findings, impression)


# --- MIMIC-CXR

METADATA = """dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns
aa,10000032,50414267,CHEST (PA AND LAT),PA,3056,2544
cc,10000764,57375967,,AP,2544,3056
bb,10000032,50414267,CHEST (PA AND LAT),LATERAL,3056,2544
dd,10000898,50771383,,,2544,3056
"""
SPLIT = """dicom_id,study_id,subject_id,split
aa,50414267,10000032,train
bb,50414267,10000032,train
cc,57375967,10000764,validate
dd,50771383,10000898,test
"""
LABELS = "subject_id,study_id," + ",".join(CHEXPERT) + "\n"
LABELS += "10000764,57375967," + ",".join("" if n else "-1.0" for n in range(14)) + "\n"
LABELS += "10000032,50414267," + ",".join("1.0" if n == 8 else "0.0" if n == 9 else "" for n in range(14)) + "\n"


@pytest.fixture
def mimic(tmp_path):
    for kind, text in (("metadata", METADATA), ("split", SPLIT), ("chexpert", LABELS)):
        write(tmp_path / f"mimic-cxr-2.0.0-{kind}.csv.gz", gzip.compress(text.encode()))
    write(tmp_path / "files/p10/p10000032/s50414267/aa.jpg", jpeg())
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p10/p10000032/s50414267.txt", REPORT)
    return tmp_path


def test_mimic_jpg(mimic):
    kind, studies = read(mimic)
    assert kind == "mimic_cxr"
    first, second, third = studies
    assert (first.study_id, first.subject_id, first.split) == ("50414267", "10000032", "train")
    assert [(v.image_id, v.position) for v in first.views] == [("aa", "PA"), ("bb", "LATERAL")]
    assert first.views[1].uri == str(mimic / "files/p10/p10000032/s50414267/bb.jpg")
    assert first.impression == "1. No acute process."
    assert first.labels == {"No Finding": 1, "Pleural Effusion": 0}
    assert (second.study_id, second.split, second.labels) == ("57375967", "val", {"Atelectasis": -1})
    assert (third.split, third.report, third.labels, third.views[0].position) == ("test", None, None, "")


def test_mimic_reports_elsewhere(mimic, tmp_path_factory):
    (mimic / "mimic-cxr-reports.zip").rename(mimic / "r.zip")
    assert read(mimic)[1][0].report is None
    assert read(mimic, reports=str(mimic / "r.zip"))[1][0].findings is not None
    folder = tmp_path_factory.mktemp("reports")
    write(folder / "files/p10/p10000032/s50414267.txt", REPORT)
    assert read(mimic, reports=str(folder))[1][0].findings is not None
    assert read(mimic, reports=str(folder / "files"))[1][0].findings is not None
    write(mimic / "files/p10/p10000032/s50414267.txt", REPORT)
    assert read(mimic)[1][0].findings is not None
    with pytest.raises(InputError, match="no reports at"):
        read(mimic, reports=str(mimic / "absent.zip"))


def test_mimic_without_labels_but_negbio(mimic):
    (mimic / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    assert read(mimic)[1][0].labels is None
    write(mimic / "mimic-cxr-2.0.0-negbio.csv", LABELS)
    assert read(mimic)[1][1].labels == {"Atelectasis": -1}


def test_mimic_dicom_tree(tmp_path):
    records = "subject_id,study_id,dicom_id,path\n10000032,50414267,aa,files/p10/p10000032/s50414267/aa.dcm\n"
    write(tmp_path / "cxr-record-list.csv.gz", gzip.compress(records.encode()))
    write(tmp_path / "files/p10/p10000032/s50414267/aa.dcm", b"x")
    kind, (only,) = read(tmp_path)
    assert (kind, only.split, only.report) == ("mimic_cxr", "", None)
    assert only.views[0].uri.endswith("/s50414267/aa.dcm")


def test_mimic_dicom_tree_with_the_tables_of_the_jpeg_release(mimic):
    (mimic / "files/p10/p10000032/s50414267/aa.jpg").rename(mimic / "files/p10/p10000032/s50414267/aa.dcm")
    assert all(v.uri.endswith(".dcm") for s in read(mimic)[1] for v in s.views)


def test_mimic_without_tables(tmp_path):
    for name in ("p10000032/s2/b.jpg", "p10000032/s2/a.jpg", "p10000032/s1/c.jpg", "p10999999/s3/d.dcm"):
        write(tmp_path / "files/p10" / name, b"x")
    write(tmp_path / "files/p10/p10000032/s1.txt", REPORT)
    studies = read(tmp_path)[1]
    assert [(s.study_id, s.subject_id, [v.image_id for v in s.views]) for s in studies] == [
        ("1", "10000032", ["c"]),
        ("2", "10000032", ["a", "b"]),
        ("3", "10999999", ["d"]),
    ]
    assert studies[0].impression == "1. No acute process."


def test_mimic_ids_that_lead_out(mimic):
    rows = METADATA.replace("dd,", "../../../../../etc/passwd,")
    write(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", gzip.compress(rows.encode()))
    assert read(mimic)[1][2].views[0].uri is None


@pytest.mark.parametrize(
    "kind, text, message",
    [
        ("metadata", METADATA.replace("study_id", "study"), r"metadata.csv.gz has no column 'study_id'"),
        (
            "metadata",
            METADATA.replace(",57375967,", ",,"),
            r"has an empty study_id\n  where: column 'study_id', line 3",
        ),
        ("split", SPLIT.replace("validate", "hold-out"), r"unknown split 'hold-out'\n  where: .*split.csv.gz, line 4"),
        (
            "chexpert",
            LABELS.replace("-1.0", "maybe"),
            r"'maybe' is not 1, 0, -1 or blank\n  where: column 'Atelectasis'",
        ),
        ("chexpert", LABELS.replace("Edema", "Oedema"), r"chexpert.csv.gz has no column 'Edema'"),
    ],
)
def test_mimic_bad_tables(mimic, kind, text, message):
    write(mimic / f"mimic-cxr-2.0.0-{kind}.csv.gz", gzip.compress(text.encode()))
    with pytest.raises(InputError, match=message):
        read(mimic)


def test_mimic_cut_off_files(mimic):
    table = mimic / "mimic-cxr-2.0.0-split.csv.gz"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"split.csv.gz cannot be read\n  cause: EOFError: the file is damaged"):
        read(mimic)
    table.write_bytes(b"not gzip")  # told by its first bytes, so it is a table without the columns
    with pytest.raises(InputError, match=r"split.csv.gz has no column 'study_id'"):
        read(mimic)
    table.write_bytes(whole)
    (mimic / "mimic-cxr-reports.zip").write_bytes(b"PK not really")
    with pytest.raises(InputError, match=r"mimic-cxr-reports.zip cannot be read as a zip archive"):
        read(mimic)


# --- R2Gen

IU = {
    "train": [{"id": "CXR1_IM-1", "report": "Clear.", "image_path": ["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"]}],
    "val": [{"id": "CXR2_IM-2", "report": "", "image_path": ["CXR2_IM-2/0.png", "../x.png"], "split": "val"}],
    "test": [],
}


def test_r2gen_iu(tmp_path):
    write(tmp_path / "annotation.json", json.dumps(IU))
    (tmp_path / "images" / "CXR1_IM-1").mkdir(parents=True)
    kind, (first, second) = read(tmp_path)
    assert kind == "r2gen"
    assert (first.study_id, first.subject_id, first.report, first.split) == ("CXR1_IM-1", "CXR1", "Clear.", "train")
    assert [v.uri for v in first.views] == [str(tmp_path / f"images/CXR1_IM-1/{n}.png") for n in (0, 1)]
    assert (second.report, second.split) == (None, "val")
    assert [v.uri is None for v in second.views] == [False, True]
    assert read(tmp_path / "annotation.json") == (kind, [first, second])


def test_r2gen_iu_under_open_i_names(tmp_path):
    write(tmp_path / "annotation.json", json.dumps(IU))
    for name in ("CXR1_IM-1-2001.png", "CXR1_IM-1-1001.png", "CXR1_IM-11-1001.png"):
        write(tmp_path / "images" / name, png())
    first, second = read(tmp_path)[1]
    assert [v.image_id for v in first.views] == ["CXR1_IM-1-1001", "CXR1_IM-1-2001"]
    assert second.views[0].uri.endswith("CXR2_IM-2/0.png")


def test_r2gen_mimic_entries_of_one_study_become_one(tmp_path):
    def entry(image, study, subject):
        path = f"p{str(subject)[:2]}/p{subject}/s{study}/{image}.jpg"
        return {"id": image, "study_id": study, "subject_id": subject, "report": f"r{study}", "image_path": [path]}

    entries = [entry("a", 7, 10000001), entry("b", 8, 10000002), entry("c", 7, 10000001)]
    write(tmp_path / "annotation.json", json.dumps({"train": entries, "val": [], "test": [entry("d", 9, 10000003)]}))
    studies = read(tmp_path)[1]
    assert [(s.study_id, s.subject_id, s.report, s.split, len(s.views)) for s in studies] == [
        ("7", "10000001", "r7", "train", 2),
        ("8", "10000002", "r8", "train", 1),
        ("9", "10000003", "r9", "test", 1),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"train": [{"id": "a", "image_path": 3}]}', r"'image_path' is not a list of texts"),
        ('{"train": [{"report": "a"}]}', r"entry 0 of 'train' has no 'id'"),
        ('{"train": ["a"]}', r"entry 0 of 'train' is not an object"),
        ('{"train": [{"id": "a", "report": ["x"]}]}', r"'report' is list, not text"),
        ('{"train": [{"id": "a"}', r"annotation.json is not valid JSON"),
        ('{"train": [{"id": "a", "study_id": 1}, {"id": "b"}]}', r"entry 'b' has no 'study_id'"),
    ],
)
def test_r2gen_bad_annotations(tmp_path, text, message):
    write(tmp_path / "annotation.json", text)
    with pytest.raises(InputError, match=message):
        read(tmp_path, format="r2gen")


# --- IU X-Ray, the other two

KAGGLE_REPORTS = 'uid,MeSH,findings,impression\n1,normal,"Clear,\nindeed.",Normal chest.\n2,x,,\n'
KAGGLE_FILMS = "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n"


def test_iu_from_kaggle(tmp_path):
    write(tmp_path / "indiana_reports.csv", KAGGLE_REPORTS)
    write(tmp_path / "indiana_projections.csv", KAGGLE_FILMS)
    write(tmp_path / "images/images_normalized/1_IM-0001-4001.dcm.png", png())
    kind, (first, second) = read(tmp_path)
    assert kind == "iu_kaggle"
    assert (first.study_id, first.findings, first.impression) == ("1", "Clear, indeed.", "Normal chest.")
    assert first.report == "Clear, indeed. Normal chest."
    assert [v.position for v in first.views] == ["FRONTAL", "LATERAL"]
    assert first.views[0].uri == str(tmp_path / "images/images_normalized/1_IM-0001-4001.dcm.png")
    assert (second.report, second.views) == (None, ())


XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">The lungs &amp; heart
 are normal.</AbstractText>
<AbstractText Label="IMPRESSION"/>
</Abstract></Article></MedlineCitation>
<parentImage id="CXR1_1_IM-0001-3001"><caption/></parentImage>
<parentImage id="CXR1_1_IM-0001-4001"/>
</eCitation>
"""


def test_iu_from_open_i(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / f"ecgen-radiology/{number}.xml", XML.replace("CXR1", f"CXR{number}"))
    write(tmp_path / "NLMCXR_dcm/2/1_IM-0001-3001.dcm", b"x")
    kind, studies = read(tmp_path)
    assert kind == "openi"
    assert [s.study_id for s in studies] == ["CXR1", "CXR2", "CXR10"]
    assert (studies[0].findings, studies[0].impression) == ("The lungs & heart are normal.", None)
    assert studies[0].views[0].uri == str(tmp_path / "NLMCXR_png/CXR1_1_IM-0001-3001.png")
    assert studies[1].views[0].uri == str(tmp_path / "NLMCXR_dcm/2/1_IM-0001-3001.dcm")


LAUGHS = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'


@pytest.mark.parametrize(
    "text, message",
    [
        (LAUGHS, "is refused"),
        (LAUGHS.encode("utf-16"), "is refused"),
        (OUTSIDE, "is refused"),
        ("<x>", "is not valid XML"),
        ("", "is not valid XML"),
        ("<x>" + " " * (5 << 20) + "</x>", "is refused"),
    ],
)
def test_open_i_xml_that_is_refused(tmp_path, text, message):
    path = write(tmp_path / "ecgen-radiology/1.xml", text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(path) in str(caught.value)


# --- ReXrank

ENTRY = {
    "image_path": ["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"],
    "frontal_lateral": ["Frontal", "Lateral"],
    "report": "Findings: a. Impression: b.",
    "section_findings": "a.",
    "section_impression": "b.",
    "split": "valid",
}


def test_rexrank_object_and_list(tmp_path):
    write(tmp_path / "ReXRank_test.json", json.dumps({"CXR1_IM-1": ENTRY}))
    kind, (only,) = read(tmp_path)
    assert kind == "rexrank"
    assert (only.study_id, only.subject_id, only.split) == ("CXR1_IM-1", "CXR1", "val")
    assert (only.findings, only.impression, only.report) == ("a.", "b.", ENTRY["report"])
    assert [v.position for v in only.views] == ["FRONTAL", "LATERAL"]
    listed = [{**ENTRY, "subject_id": 7}, {"image_path": "x/s2.png", "study_id": 9}]
    path = write(tmp_path / "list.json", json.dumps(listed))
    assert [(s.study_id, s.subject_id, s.split) for s in read(path)[1]] == [("CXR1_IM-1", "7", "val"), ("9", "9", "")]


def test_rexrank_entry_without_an_id(tmp_path):
    path = write(tmp_path / "list.json", json.dumps([{"image_path": ["a.png", "b.png"]}]))
    with pytest.raises(InputError, match=r"list.json: entry 0 has no study id"):
        read(path, format="rexrank")


# --- NIH

NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,View Position
00000001_000.png,Cardiomegaly|Effusion,0,1,PA
00000002_000.png,No Finding,0,2,AP
"""


def test_nih(tmp_path):
    write(tmp_path / "Data_Entry_2017_v2020.csv", NIH)
    write(tmp_path / "images_001/images/00000001_000.png", png())
    write(tmp_path / "images_002/images/00000002_000.png", png())
    kind, (first, second) = read(tmp_path)
    assert kind == "nih"
    assert (first.study_id, first.subject_id, first.report, first.split) == ("00000001_000", "1", None, "")
    assert first.labels["Cardiomegaly"] == first.labels["Pleural Effusion"] == 1
    assert first.labels["Edema"] == first.labels["No Finding"] == 0
    assert second.labels["No Finding"] == 1 and second.views[0].position == "AP"
    assert second.views[0].uri == str(tmp_path / "images_002/images/00000002_000.png")


def test_nih_path_that_leads_out(tmp_path):
    write(tmp_path / "labels.csv", NIH.replace("00000001_000.png", "../../etc/passwd").replace("00000002", "/etc/x/2"))
    assert [s.views[0].uri for s in read(tmp_path)[1]] == [None, None]
