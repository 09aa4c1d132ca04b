"""The layouts of public data sets, each as a tiny tree of its own.

- CheXpert, CheXpert Plus, PadChest, VinDr-CXR, RSNA, ReXGradient-160K: studies, films, views, splits, reports, labels
- MIMIC-CXR given as files/ or its parent, as PNG, with sectioned reports, with tables missing
- Hugging Face ImageFolder and Parquet with films inside; WebDataset tars, read in place
- what a layout does not read is counted; a wrong table is an error that names file, column and line
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_films import dicom_bytes, png, write

from megpt.config import DataConfig
from megpt.data.sources import open_source
from megpt.data.studies import with_films
from megpt.errors import InputError
from megpt.films.decode import load_films
from megpt.study import CHEXPERT


def read(path, **data):
    source = open_source(path, data=DataConfig(**data))
    studies = list(source.studies())
    assert studies == list(source.studies()), "a second reading gives the same"
    assert list(with_films(source.listed())) == studies, "films are fetched from where the list says"
    return source, {study.study_id: study for study in studies}


def readable(studies):
    return all(load_films(s, size=8, max_views=None, max_pixels=10**6) for s in studies.values())


LABELS = ",".join(CHEXPERT)


def row(**values):
    return ",".join(values.get(name.replace(" ", "_"), "") for name in CHEXPERT)


def test_chexpert(tmp_path):
    root = tmp_path / "any name"
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{LABELS}\n"
    films = {
        "train": ["patient00001/study1/view1_frontal.jpg", "patient00001/study1/view2_lateral.jpg"],
        "valid": ["patient00009/study2/view1_frontal.jpg"],
    }
    for split, paths in films.items():
        lines = [
            f"CheXpert-v1.0-small/{split}/{path},F,60,{'Lateral' if 'lateral' in path else 'Frontal'},AP,"
            + row(Edema="-1.0", No_Finding="", Fracture="1.0")
            for path in paths
        ]
        write(root / f"{split}.csv", header + "\n".join(lines) + "\n")
        for path in paths:
            write(root / split / path, png())
    write(root / "test.csv", f"Path,{LABELS}\ntest/patient3/study1/view1_frontal.jpg,{row(Edema='0')}\n")
    write(root / "test/patient3/study1/view1_frontal.jpg", png())
    source, studies = read(root)
    assert source.format == "chexpert" and readable(studies)
    test = studies["patient3/study1"]
    assert (test.split, test.labels, test.views[0].position) == ("test", {"Edema": 0}, "FRONTAL")
    first = studies["patient00001/study1"]
    assert (first.subject_id, first.split, first.labels) == ("patient00001", "train", {"Edema": -1, "Fracture": 1})
    assert [v.position for v in first.views] == ["FRONTAL", "LATERAL"]
    assert studies["patient00009/study2"].split == "val"


def test_chexpert_plus(tmp_path):
    table = (
        "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,report,section_findings,section_impression,split\n"
        'train/patient1/study1/view1_frontal.jpg,x,Frontal,AP,patient1,"raw",Clear lungs.,Normal.,train\n'
        'train/patient1/study2/view1_frontal.jpg,x,Lateral,,patient1,"FINDINGS: A.\nIMPRESSION: B.",,,valid\n'
    )
    write(tmp_path / "df_chexpert_plus_240401.csv", table)
    for number in (1, 2):
        write(tmp_path / f"PNG/train/patient1/study{number}/view1_frontal.png", png())
    source, studies = read(tmp_path)
    assert source.format == "chexpert_plus" and readable(studies)
    first, second = studies.values()
    assert (first.report, first.findings, first.impression) == ("Clear lungs. Normal.", "Clear lungs.", "Normal.")
    assert (second.report, second.impression, second.split) == ("A. B.", "B.", "val")
    assert {s.subject_id for s in (first, second)} == {"patient1"}


def test_an_archive_inside_the_only_folder(tmp_path):
    write(tmp_path / "down/loaded/manifest.csv", "study_id,image,report\n1,a.png,Clear.\n")
    write(tmp_path / "down/loaded/a.png", png())
    source, studies = read(tmp_path)
    assert (source.format, source.root) == ("manifest", tmp_path / "down/loaded") and readable(studies)


def test_padchest(tmp_path):
    table = (
        "ImageID,ImageDir,StudyID,PatientID,Projection,Report,Labels\n"
        "1_a.png,0,0099,007,PA,corazon normal,\"['cardiomegaly', 'pacemaker']\"\n"
        "2_b.png,3,11,8,PA,normal,\"['normal']\"\n"
        "1_c.png,0,0099,007,L,corazon normal,nan\n"
    )
    write(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", table)
    for path in ("0/1_a.png", "0/1_c.png", "images/3/2_b.png"):
        write(tmp_path / path, png())
    source, studies = read(tmp_path)
    assert source.format == "padchest" and readable(studies) and list(studies) == ["0099", "11"]
    first = studies["0099"]
    assert (first.subject_id, first.report) == ("007", "corazon normal")
    assert [(v.image_id, v.position) for v in first.views] == [("1_a.png", "PA"), ("1_c.png", "LATERAL")]
    assert {name for name, value in first.labels.items() if value} == {"Cardiomegaly", "Support Devices"}
    assert studies["11"].labels["No Finding"] == 1 and studies["11"].labels["Edema"] == 0
    write(tmp_path / "PADCHEST.csv", "ImageID,StudyID,PatientID,Labels\na.png,1,2,__import__('os')\n")
    with pytest.raises(InputError, match=r"the labels are not a list\n  where: column 'Labels', line 2"):
        read(tmp_path / "PADCHEST.csv")


def test_vindr(tmp_path):
    for path in ("train/a.dicom", "train/b.dicom", "test/c.png"):
        write(tmp_path / path, png())
    write(tmp_path / "train/note.txt", "x")
    votes = "a,R1,1,0\na,R2,1,0\na,R3,0,1\nb,R1,0,1\nz,R1,0,1\n"
    write(tmp_path / "annotations/image_labels_train.csv", "image_id,rad_id,Pleural effusion,No finding\n" + votes)
    write(tmp_path / "annotations/image_labels_test.csv", "image_id,Pleural effusion,No finding\nc,1,0\n")
    source, studies = read(tmp_path)
    assert source.format == "vindr" and readable(studies)
    assert {s.study_id: (s.split, s.labels) for s in studies.values()} == {
        "a": ("train", {"No Finding": 0, "Pleural Effusion": 1}),
        "b": ("train", {"No Finding": 1, "Pleural Effusion": 0}),
        "c": ("test", {"No Finding": 0, "Pleural Effusion": 1}),
    }
    assert dict(source.ignored) == {
        "files of train/ that are no films, .txt": 1,
        "films with labels that are in neither train/ nor test/": 1,
    }


def test_vindr_with_boxes_alone(tmp_path):
    for name in "ab":
        write(tmp_path / f"train/{name}.png", png())
    boxes = (
        "a,Cardiomegaly,R1\na,Cardiomegaly,R1\na,Nodule/Mass,R1\na,Cardiomegaly,R2\na,No finding,R3\nb,No finding,R1\n"
    )
    write(tmp_path / "train.csv", "image_id,class_name,rad_id\n" + boxes)
    source, studies = read(tmp_path)
    assert source.format == "vindr"
    assert {name: s.labels for name, s in studies.items()} == {
        "a": {"Cardiomegaly": 1, "Lung Lesion": 0, "No Finding": 0},
        "b": {"Cardiomegaly": 0, "Lung Lesion": 0, "No Finding": 1},
    }


def test_vindr_one_folder_down(tmp_path):
    write(tmp_path / "unpacked/train/a.dicom", dicom_bytes())
    write(tmp_path / "unpacked/annotations/image_labels_train.csv", "image_id,rad_id,No finding\na,R1,1\n")
    assert read(tmp_path)[0].format == "vindr"


def test_rsna(tmp_path):
    for path in ("stage_2_train_images/a.dcm", "stage_2_train_images/b.dcm", "stage_2_test_images/c.dcm"):
        write(tmp_path / path, png())
    write(
        tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target\na,1,2,3,4,1\na,5,6,7,8,1\nb,,,,,0\n"
    )
    write(tmp_path / "stage_2_detailed_class_info.csv", "patientId,class\na,Lung Opacity\nb,Normal\n")
    source, studies = read(tmp_path)
    assert source.format == "rsna" and readable(studies)
    assert {s.study_id: (s.split, s.labels) for s in studies.values()} == {
        "a": ("train", {"Lung Opacity": 1, "No Finding": 0}),
        "b": ("train", {"Lung Opacity": 0, "No Finding": 1}),
        "c": ("test", None),
    }


def test_rexgradient(tmp_path):
    for split in ("train", "valid", "test"):
        path = f"deid_png/P{split}/A/studies/1.2/series/3/instances/{split}.png"
        write(tmp_path / path, png())
        entry = {
            "StudyInstanceUid": "1.2",
            "PatientID": f"P{split}",
            "ImagePath": [f"../{path}"],
            "ImageViewPosition": ["PA"],
            "Findings": "Clear.\n",
            "Impression": "Normal.",
        }
        if split == "test":  # a split without the file of views
            entry.pop("ImageViewPosition")
        else:
            write(tmp_path / f"metadata/{split}_metadata_view_position.json", json.dumps({f"p_{split}": entry}))
        write(tmp_path / f"metadata/{split}_metadata.json", json.dumps({f"p_{split}": entry}))
    write(tmp_path / "metadata/train_metadata.csv", "id,Findings\np_train,Clear.\n")
    source, studies = read(tmp_path)
    assert source.format == "rexgradient" and readable(studies)
    assert [(s.study_id, s.subject_id, s.split) for s in studies.values()] == [
        ("p_train", "Ptrain", "train"),
        ("p_valid", "Pvalid", "val"),
        ("p_test", "Ptest", "test"),
    ]
    first = studies["p_train"]
    assert (first.report, first.impression, first.views[0].position) == ("Clear. Normal.", "Normal.", "PA")


# --- MIMIC-CXR


@pytest.fixture
def mimic(tmp_path):
    for patient, study in (("10000032", "50414267"), ("11000033", "50414268")):
        folder = tmp_path / "release/files" / f"p{patient[:2]}" / f"p{patient}"
        write(folder / f"s{study}" / f"{study}-a.png", png())
        write(folder / f"s{study}.txt", "FINDINGS: Clear.\n\nIMPRESSION: Normal.\n")
    return tmp_path / "release"


@pytest.mark.parametrize("given", ["", "files"])
@pytest.mark.parametrize("tables", [False, True])
def test_mimic_as_png_with_and_without_tables(mimic, given, tables):
    if tables:
        rows = ["50414267-a,10000032,50414267,PA", "50414268-a,11000033,50414268,LATERAL"]
        header = "dicom_id,subject_id,study_id,ViewPosition\n"
        write(mimic / "mimic-cxr-2.0.0-metadata.csv", header + "\n".join(rows) + "\n")
    source, studies = read(mimic / given)
    assert source.format == "mimic_cxr" and readable(studies) and list(studies) == ["50414267", "50414268"]
    assert {s.report for s in studies.values()} == {"Clear. Normal."}
    assert [s.views[0].position for s in studies.values()] == (["PA", "LATERAL"] if tables else ["", ""])


def test_a_folder_of_mimic_with_another_name(mimic):
    source, studies = read((mimic / "files").rename(mimic / "images_512"))
    assert source.format == "mimic_cxr" and readable(studies)
    assert [s.subject_id for s in studies.values()] == ["10000032", "11000033"]


def test_sectioned_reports(mimic):
    table = (
        "study,impression,findings,last_paragraph,comparison\n"
        's50414267,Small effusion.,"Heart\n is large.",,None.\n'
        "s50414268,,,The last paragraph.,\n"
    )
    write(mimic / "mimic_cxr_sectioned.csv", table)
    _, studies = read(mimic)
    first, second = studies.values()
    assert (first.report, first.findings) == ("Heart is large. Small effusion.", "Heart is large.")
    assert (second.report, second.findings, second.impression) == ("The last paragraph.", None, None)


# --- Hugging Face


def test_imagefolder_with_a_table_in_each_split(tmp_path):
    write(tmp_path / "train/metadata.csv", "file_name,text\n0000.png,Clear.\nsub/1.png,\n")
    write(tmp_path / "validation/metadata.jsonl", '{"file_name": "0000.png", "text": "Large heart."}\n')
    for path in ("train/0000.png", "train/sub/1.png", "validation/0000.png"):
        write(tmp_path / path, png())
    source, studies = read(tmp_path)
    assert source.format == "imagefolder" and readable(studies)
    assert {s.study_id: (s.split, s.report) for s in studies.values()} == {
        "train/0000": ("train", "Clear."),
        "train/sub/1": ("train", None),
        "validation/0000": ("val", "Large heart."),
    }


def test_imagefolder_with_several_films_a_row(tmp_path):
    write(tmp_path / "metadata.csv", "frontal_file_name,lateral_file_name,findings\na.png,b.png,Clear.\n")
    for name in "ab":
        write(tmp_path / f"{name}.png", png())
    _, studies = read(tmp_path)
    (only,) = studies.values()
    assert [(v.image_id, v.position) for v in only.views] == [("a.png", "FRONTAL"), ("b.png", "LATERAL")]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet_with_films_inside(tmp_path):
    def table(*images, kind=IMAGE):
        return pa.table({"image": pa.array(images, kind), "findings": ["Clear."] * len(images)})

    film = {"bytes": png(), "path": "x.png"}
    write(tmp_path / "data/README.md", "x")
    pq.write_table(table(film, None, film), tmp_path / "data/train-00000-of-00001.parquet", row_group_size=2)
    pq.write_table(table([film, film], kind=pa.list_(IMAGE)), tmp_path / "data/test-00000-of-00001.parquet")
    source, studies = read(tmp_path)
    assert source.format == "huggingface"
    assert {s.study_id: (s.split, len(s.views)) for s in studies.values()} == {
        "test-00000-of-00001-000000": ("test", 2),
        "train-00000-of-00001-000000": ("train", 1),
        "train-00000-of-00001-000001": ("train", 0),
        "train-00000-of-00001-000002": ("train", 1),
    }
    assert all(view.data == film["bytes"] for s in studies.values() for view in s.views)
    assert all(view.data is None for listed in source.listed() for view in listed.study.views)
    single = pa.table({"study_id": [7.0], "scan": pa.array([png()], pa.binary())})
    pq.write_table(single, tmp_path / "one.parquet")
    assert read(tmp_path / "one.parquet")[1]["7"].views[0].data == png()


def test_parquet_with_paths_alone(tmp_path):
    table = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], IMAGE), "text": ["Clear."]})
    pq.write_table(table, tmp_path / "t.parquet")
    write(tmp_path / "a.png", png())
    _, studies = read(tmp_path / "t.parquet")
    assert readable(studies) and list(studies) == ["a"]


def test_the_example_of_the_documentation(tmp_path):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]:
        exec(block, names)
    write(tmp_path / "clinic.csv", "Case;File;Patient;Set;Edema\n007;a.png;1.0;valid;1\n8;b.png;;;\n007;c.png;1.0;;\n")
    studies = list(names["ClinicList"](tmp_path, DataConfig()).studies())
    assert [(s.study_id, s.subject_id, s.split, s.labels, len(s.views)) for s in studies] == [
        ("007", "1", "val", {"Edema": 1}, 2),
        ("8", "8", "", None, 1),
    ]
    write(tmp_path / "a.png", png())
    write(tmp_path / "a.txt", "Clear.")
    (study,) = names["PacsExport"](tmp_path, DataConfig()).studies()
    assert (study.study_id, study.report, study.views[0].uri) == ("a", "Clear.", str(tmp_path / "a.png"))


# --- WebDataset


def make_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset(tmp_path):
    members = [
        ("0.frontal.png", png()),
        ("0.lateral.png", png()),
        ("0.txt", b"FINDINGS: Clear."),
        ("1.png", png()),
        ("1.json", json.dumps({"findings": "Large heart.", "patient_id": 12.0, "Edema": 1, "split": "val"}).encode()),
        ("2.json", b"{}"),
        ("../3.png", png()),
        ("4.cls", b"1"),
    ]
    make_tar(tmp_path / "train-000000.tar", members)
    source, studies = read(tmp_path)
    assert source.format == "webdataset" and readable(studies) and list(studies) == ["0", "1"]
    first, second = studies.values()
    assert [v.position for v in first.views] == ["FRONTAL", "LATERAL"]
    assert (first.report, first.split) == ("Clear.", "train")
    assert (second.report, second.subject_id, second.labels, second.split) == (
        "Large heart.",
        "12",
        {"Edema": 1},
        "val",
    )
    assert dict(source.ignored) == {"members whose path leads out": 1, "members .cls": 1, "keys without a film": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train-000000.tar"], "nothing is unpacked"


def test_webdataset_keys_of_two_shards_stay_apart(tmp_path):
    for shard in ("train/a.tar", "test/b.tar"):
        make_tar(tmp_path / shard, [("0.png", png()), ("0.txt", b"Clear.")])
    _, studies = read(tmp_path)
    assert {s.study_id: s.split for s in studies.values()} == {"test/b/0": "test", "train/a/0": "train"}


def test_a_tar_of_dicom_needs_texts_to_be_webdataset(tmp_path):
    make_tar(tmp_path / "export.tar", [("IM1", dicom_bytes()), ("IM2", dicom_bytes())])
    assert open_source(tmp_path / "export.tar", data=DataConfig()).format == "dicom"
    make_tar(tmp_path / "shard.tar", [("1.dcm", dicom_bytes()), ("1.txt", b"Clear.")])
    source, studies = read(tmp_path / "shard.tar")
    assert source.format == "webdataset" and studies["1"].report == "Clear." and readable(studies)


def test_a_damaged_tar(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("0.png", png()), ("1.png", png() * 50), ("2.txt", b"x")])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        InputError, match=r"a.tar cannot be read as a tar\n  cause: \w+: compressed, damaged or cut off"
    ):
        read(path)
    make_tar(tmp_path / "b.tar", [("0.png", png()), ("0.txt", b"x" * (1 << 20) + b"x")])
    with pytest.raises(InputError, match=r"holds a text of 1048577 bytes\n  where: '0.txt'"):
        read(tmp_path / "b.tar")
