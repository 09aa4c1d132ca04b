"""The decoders that run in a helper process.

- a frame that crashes its decoder is an unreadable film, and the next film is read
- so is one that takes too long; a helper that was killed between two films is replaced
- several threads may ask at once, and a forked child gets a helper of its own
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megpt.films import apart
from megpt.films.decode import UnreadableFilm, load_film
from megpt.study import View

LOSSLESS = (Path(__file__).parent / "files" / "lossless.jpg").read_bytes()


def top(data: bytes = LOSSLESS) -> int:
    return int(np.asarray(load_film(View("x", data=data), size=None, max_pixels=10**6)).max())


def test_a_crash_is_an_unreadable_film():
    # this Huffman table makes GDCM call std::terminate
    crashing = bytearray(LOSSLESS)
    crashing[11] = 221
    for _ in range(2):
        with pytest.raises(UnreadableFilm, match=r"^damaged JPEG \(DecoderDied\)$"):
            top(bytes(crashing))
        assert top() == 255


def test_a_decoder_that_takes_too_long_is_ended(monkeypatch):
    assert top() == 255
    with monkeypatch.context() as patch:
        patch.setattr(apart, "SECONDS", 0.2)
        os.kill(apart._helper._process.pid, signal.SIGSTOP)
        with pytest.raises(UnreadableFilm, match=r"^damaged JPEG \(DecoderDied\)$"):
            top()
    assert apart._helper._process is None
    assert top() == 255


def test_a_helper_that_was_killed_is_replaced():
    assert top() == 255
    process = apart._helper._process
    process.kill()
    process.wait()
    assert top() == 255 and apart._helper._process is not process


def test_threads_and_children():
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: top(), range(12))) == {255}
    mine = apart._helper._process.pid
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if top() == 255 and apart._helper._process.pid != mine else 2
            apart._helper.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert top() == 255 and apart._helper._process.pid == mine
