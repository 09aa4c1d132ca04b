"""What a command found out on this machine is known to the next one, and to its user alone.

- a value comes back where all that it depends on is the same, also in another process; else nothing does
- a damaged file, a value of another kind, a cache that cannot be read or written: as if nothing had been remembered
- folder 0700, files 0600; beyond a number of files the oldest go; the source of a room is part of what is depended on
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megpt.places import remembered
from megpt.places.cache import REMEMBERED
from megpt.places.remembered import recall, remember, software

DEPENDS = ["llama", {"hidden_size": 64, "rope": None}, 3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_value_comes_back_for_the_same_reasons_alone(cache: Path) -> None:
    assert recall("trial", DEPENDS) is None
    remember("trial", DEPENDS, {"engine": None})
    assert recall("trial", DEPENDS) == {"engine": None}
    for other in (["llama", {"hidden_size": 65, "rope": None}, 3], ["llama", {"hidden_size": 64, "rope": None}, 1]):
        assert recall("trial", other) is None
    assert recall("another", DEPENDS) is None
    code = f"from megpt.places.remembered import recall; print(recall('trial', {DEPENDS}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "{'engine': None}\n"


def test_it_is_the_user_s_alone(cache: Path) -> None:
    before = os.umask(0)
    try:
        remember("trial", DEPENDS, 1)
    finally:
        os.umask(before)
    (file,) = (cache / REMEMBERED).iterdir()
    assert (cache / REMEMBERED).stat().st_mode & 0o777 == 0o700 and file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"what": "another", "value": 1}', b'{"what": 1}']
)
def test_a_damaged_file_is_no_file(cache: Path, content: bytes) -> None:
    remember("trial", DEPENDS, 1)
    (file,) = (cache / REMEMBERED).iterdir()
    file.write_bytes(content)
    assert recall("trial", DEPENDS) is None
    remember("trial", DEPENDS, 2)
    assert recall("trial", DEPENDS) == 2


def test_a_cache_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEGPT_CACHE", str(tmp_path / "file" / "cache"))
    remember("trial", DEPENDS, 1)
    assert recall("trial", DEPENDS) is None
    monkeypatch.delenv("MEGPT_CACHE")
    monkeypatch.setattr(Path, "home", _no_home)
    remember("trial", DEPENDS, 1)
    assert recall("trial", DEPENDS) is None


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_oldest_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 3)
    for number in range(5):
        remember("trial", number, number)
        for age, path in enumerate(sorted((cache / REMEMBERED).iterdir(), key=lambda path: -path.stat().st_mtime_ns)):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert [recall("trial", number) for number in range(5)] == [None, None, 2, 3, 4]
    assert len(list((cache / REMEMBERED).iterdir())) == 3


def test_code_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text("x = 1\n")
    monkeypatch.setattr("megpt.__file__", str(tmp_path / "__init__.py"))
    software.cache_clear()
    first = software("room")
    (tmp_path / "room" / "file.py").write_text("x = 2\n")
    assert software("room") == first
    software.cache_clear()
    assert software("room") != first and software("room")[:-1] == first[:-1]
    software.cache_clear()
