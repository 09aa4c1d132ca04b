"""What reaches a terminal: ids, paths and reasons come from tables that anyone may have written.

- control characters, also of colours and of the direction of words, are shown as escapes; an id is one line
- letters of every language stay as they are; a list inside an error keeps its lines
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megpt.errors import InputError, MegptError, from_text, printable
from megpt.progress import PieceCounts, Progress, log
from ray_jobs.__main__ import main

EVIL = "s1\x1b[2J\x1b]0;pwned\x07\r\nerror: all is well\x9b31m\u202e"
SHOWN = r"s1\x1b[2J\x1b]0;pwned\x07\r\nerror: all is well\x9b31m\u202e"


def is_clean(text: str) -> bool:
    return not any(letter in text for letter in "\x1b\x07\r\x9b\u202e") and "\nerror: all is well" not in text


def test_what_is_escaped() -> None:
    assert printable(EVIL) == SHOWN
    for text in ("Schürmann\u00a0– naïve, žluťoučký, 肺炎, Ω", "tab\tstays", ""):
        assert printable(text) == text
    assert printable("a\nb\x1bc", lines=True) == "a\nb\\x1bc"
    assert printable("\ud800") == r"\ud800"


def test_errors_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError(f"two studies have the id {EVIL}", where=EVIL, cause="one of\n  a\n  b\x1b", next=EVIL)
    assert is_clean(str(error)) and "one of\n  a\n  b\\x1b\n" in str(error)
    known = from_text(f"Traceback\nmegpt.errors.InputError: {error}")
    assert isinstance(known, MegptError) and str(SHOWN) in str(known.what)
    log(f"the films of 1 study have changed: {EVIL}")
    with Progress("prepare", 3) as bar:
        bar.in_flight({"a": PieceCounts(1)})
        bar.advance(3, {EVIL: 1})
    said = capsys.readouterr().err
    assert is_clean(said) and said.count(SHOWN) == 2


@pytest.mark.parametrize("job", ["prepare", "status"])
def test_a_command_on_such_ids_and_paths(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if job == "status":
        folder = tmp_path / EVIL.replace("/", "")
        folder.mkdir()
        (folder / "megpt.yaml").write_text("job: prepare\n")
        assert main(["status", str(folder)]) == 0
    else:
        study = EVIL.replace("\r", "")
        rows = [f'"{study}",a.png,p1', f'"{study}",b.png,p2']
        (tmp_path / "manifest.csv").write_text("\n".join(["study_id,image_path,subject_id,split", *rows]) + "\n")
        rows = f'"{study}",a.png,p1,nowhere\n'
        (tmp_path / "manifest.csv").write_text("study_id,image_path,subject_id,split\n" + rows)
        assert main(["prepare", f"source={tmp_path}/manifest.csv", f"output={tmp_path}/out"]) == 2
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "pwned" in said and is_clean(said)
