"""Decoders that must not run in this process: GDCM and CharLS (JPEG-LS).

On damaged frames GDCM ends the process ("terminate called …") and CharLS may loop without end, and one film must never
end a job. A helper process, started at the first such frame and kept, decodes them; if it dies or takes too long, the
film is unreadable and the next one gets a new helper. Both also write to the terminal, which stays quiet this way.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import struct
import subprocess
import sys
import threading
import time

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset

PLUGINS = ("gdcm", "pyjpegls")
# The largest films take a few seconds; starting the helper on a busy machine is part of the first one's time.
SECONDS, MEGAPIXELS_PER_SECOND = 30.0, 1.0
ELEMENTS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "NumberOfFrames", "PixelData"),
)
REQUEST, REPLY = struct.Struct(">BQ"), struct.Struct(">BQ")


class DecoderDied(Exception):
    """The helper ended, or was ended because it took too long."""


class _Helper:
    """One helper process, for one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """The status and the payload of the helper's reply.

        Raises:
            DecoderDied: no reply.
        """
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write(request)
                process.stdin.flush()
                deadline = time.monotonic() + seconds
                status, length = REPLY.unpack(self._read(process, REPLY.size, deadline))
                return status, self._read(process, length, deadline)
            except (OSError, DecoderDied):
                self._end()
                raise DecoderDied from None

    def close(self) -> None:
        if self._owner == os.getpid():
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        # A forked child must not talk to its parent's helper.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
            self._process = subprocess.Popen(
                [sys.executable, "-m", "megpt.films.apart_helper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
            self._owner = os.getpid()
        return self._process

    def _read(self, process: subprocess.Popen[bytes], length: int, deadline: float) -> bytes:
        assert process.stdout is not None
        descriptor, data = process.stdout.fileno(), bytearray()
        while len(data) < length:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, min(length - len(data), 1 << 20)) if ready else b""
            if not chunk:
                raise DecoderDied
            data += chunk
        return bytes(data)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written is lost, as it should be
                    pipe.close()


_helper = _Helper()
atexit.register(_helper.close)


def decode(dataset: Dataset, plugin: str) -> np.ndarray:
    """The stored values of the one frame in `dataset`, decoded by `plugin` in the helper process.

    Raises:
        DecoderDied: the decoder crashed, or took too long.
        RuntimeError: it refused the frame.
    """
    frame = Dataset()
    frame.file_meta = FileMetaDataset()
    frame.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    for name in ELEMENTS:
        if name in dataset:
            frame[name] = dataset[name]
    buffer = io.BytesIO()
    frame.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=False)
    data = buffer.getvalue()
    seconds = SECONDS + int(dataset.Rows) * int(dataset.Columns) / (MEGAPIXELS_PER_SECOND * 1e6)
    status, reply = _helper.ask(REQUEST.pack(PLUGINS.index(plugin), len(data)) + data, seconds)
    if status:
        raise RuntimeError(reply.decode("ascii", "replace"))
    return np.load(io.BytesIO(reply), allow_pickle=False)
