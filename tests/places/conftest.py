"""One S3 server for the tests of addresses; each test has a bucket of its own, reached through a proxy."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from far_store import KEYS, Proxy, make_bucket, s3_server

NAMES = itertools.count()
# the layouts of tests/data are read at addresses too
sys.path.append(str(Path(__file__).parents[1] / "data"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("obstore", reason="megpt[s3]")
    pytest.importorskip("moto", reason="the test extra")
    with s3_server(tmp_path_factory.mktemp("moto") / "log") as address:
        yield address


@pytest.fixture
def proxy(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy that this process reaches the server through."""
    from megpt.places import snapshot, stores

    found = Proxy(server)
    with found.running() as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address, "MEGPT_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        stores._store.cache_clear()
        yield found
        stores._store.cache_clear()
        snapshot._taken.clear()


@pytest.fixture
def bucket(proxy: Proxy) -> str:
    """The address of an empty bucket."""
    name = f"bucket-{next(NAMES)}"
    make_bucket(proxy.server, name)
    return f"s3://{name}"
