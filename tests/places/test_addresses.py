"""What an address may be.

- a password, a signature or a query in an address is refused, and the text repeats none of it
- unknown kinds are named with the known ones; a near miss is put right
- hf:// and https:// cannot be an output
- a key may hold any sign; a path of this machine stays a Path
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from megpt.errors import InputError
from megpt.places import FarPath, addresses, check, is_address, place
from ray_jobs.__main__ import main


@pytest.mark.parametrize(
    "address",
    [
        "s3://user:pa55word@bucket/key",
        "https://user:pa55word@host/list.csv",
        "https://host/list.csv?X-Amz-Signature=pa55word",
        "s3://bucket?secret=pa55word",
    ],
)
def test_an_address_that_holds_a_secret_is_refused_and_not_repeated(address: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError) as raised:
        place(address)
    assert "pa55word" not in str(raised.value)
    assert raised.value.what == f"{address.partition(':')[0]}://… holds a user name, a password or a signature"
    for named in (["--print-config"], []):
        assert main(["prepare", f"source={address}", "output=out", *named]) == 2
        shown = capfd.readouterr()
        assert "pa55word" not in shown.out + shown.err
        assert "source = " in shown.err


@pytest.mark.parametrize(
    ("address", "text", "following"),
    [
        (
            "ftp://host/x",
            "'ftp://host/x': unknown kind of address ftp://",
            "use s3://, gs://, az://, hf://, https://, http://, or a path",
        ),
        ("s3a://bucket/x", "'s3a://bucket/x': unknown kind of address s3a://", "write s3://…"),
        ("abfss://box/x", "'abfss://box/x': unknown kind of address abfss://", "write az://…"),
        ("s3:///x", "'s3:///x' names no bucket or host", "write s3://BUCKET/PATH"),
    ],
)
def test_an_unknown_kind_of_address(address: str, text: str, following: str) -> None:
    with pytest.raises(InputError) as raised:
        place(address)
    assert (raised.value.what, raised.value.next) == (text, following)


@pytest.mark.parametrize("address", ["hf://datasets/someone/films", "https://host/films"])
def test_what_is_read_only_cannot_be_an_output(address: str, capfd: pytest.CaptureFixture) -> None:
    assert main(["prepare", "source=.", f"output={address}"]) == 2
    assert f"output = {address!r} cannot be written" in capfd.readouterr().err


def test_an_output_inside_the_source_is_refused(capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("obstore")
    assert main(["prepare", "source=s3://bucket/films", "output=s3://bucket/films/out"]) == 2
    assert "output = 's3://bucket/films/out' lies inside source = 's3://bucket/films'" in capfd.readouterr().err


def test_a_job_of_many_outputs_takes_no_address(capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("obstore")
    assert main(["demo", "output=s3://bucket/out"]) == 2
    assert "output = 's3://bucket/out': demo writes to a folder of this machine only" in capfd.readouterr().err


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "has_client", lambda: False)
    with pytest.raises(InputError) as raised:
        check("gs://bucket/x")
    assert raised.value.what == "gs:// needs the package obstore"
    assert raised.value.next == 'pip install "megpt[gs]" on every node'


def test_paths_of_this_machine_stay_paths() -> None:
    assert place("runs/out") == Path("runs/out")
    assert not is_address("file:///data/x.png") and not is_address("/data/a:b") and not is_address(None)


def test_the_parts_of_an_address() -> None:
    path = FarPath("s3://bucket/a/b #1?.tar.gz/")
    assert str(path) == "s3://bucket/a/b #1?.tar.gz"
    assert (path.name, path.stem, path.suffix, path.suffixes) == ("b #1?.tar.gz", "b #1?.tar", ".gz", [".tar", ".gz"])
    assert str(path.parent) == "s3://bucket/a" and str(path.parent.parent) == "s3://bucket"
    assert path.parent.parent.parent == path.parent.parent == FarPath("s3://bucket")
    assert [str(above) for above in path.parents] == ["s3://bucket/a", "s3://bucket"]
    assert path.relative_to(FarPath("s3://bucket")).as_posix() == "a/b #1?.tar.gz"
    assert path.is_relative_to(FarPath("s3://bucket/a")) and not path.is_relative_to(FarPath("s3://other"))
    assert str(path.with_suffix(".zip")) == "s3://bucket/a/b #1?.tar.zip"
    assert str(path.with_name("c")) == "s3://bucket/a/c" and path / "." == path
    assert pickle.loads(pickle.dumps(path)) == path and hash(path) == hash(FarPath(str(path)))
    assert sorted([FarPath("s3://bucket/b"), FarPath("s3://bucket/a")])[0].name == "a"
    with pytest.raises(TypeError):
        Path(path)  # type: ignore[arg-type]  # a call that needs a file of this machine fails aloud
