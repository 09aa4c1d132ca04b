"""The state of a study's films changes with the file that holds them, also where that is an archive.

- a film that is a file, a member of a zip or tar, or a file of a name that is no UTF-8
- a film that is not there has a state too; one on a server is known by its name alone
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from make_films import gradient, png

from megpt.data.growth import film_state
from megpt.data.studies import Listed
from megpt.films.members import to_uri
from megpt.study import Study, View


def state(uri: str) -> bytes:
    return film_state(Listed(Study("s", views=(View("a", uri=uri),))))


@pytest.mark.parametrize("name", ["film.png", "a!b.png", os.fsdecode(b"films\xff.png")])
@pytest.mark.parametrize("packed", [False, True])
def test_it_changes_with_the_file(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name

    def write(grey: int) -> None:
        if packed:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("day/1.png", png(gradient(grey)))
        else:
            path.write_bytes(png(gradient(grey)))

    write(40)
    uri = to_uri(str(path), "day/1.png" if packed else None)
    before = state(uri)
    assert state(uri) == before
    write(90)
    os.utime(path, ns=(1, 1))
    assert state(uri) != before
    path.unlink()
    assert state(uri) not in (before, state("dicomweb://host/a"))


def test_a_server_is_not_asked() -> None:
    assert state("dicomweb://nowhere/studies/1") == state("dicomweb://nowhere/studies/2")
