"""The memory of one film is bounded, whatever its file claims and however far it unfolds.

- deflated and gzipped DICOM files are unpacked no further than the first frame, and not at all if that is too large
- of many frames only the first is held; a fragment or a pixel that claims too much is refused
"""

from __future__ import annotations

import gzip
import tracemalloc

import numpy as np
import pytest
from make_films import dataset, deflated, dicom_bytes, encoded, gradient, in_syntax
from pydicom.uid import JPEG2000Lossless

from megpt.films.decode import UnreadableFilm, check_film, film_type, kind_of, load_film
from megpt.study import View

RAMP12 = gradient(48, 96, top=4095, dtype=np.uint16)
SIZE12 = {"BitsStored": 12, "HighBit": 11}
LIMIT = 10**7


def show(data: bytes, size: int | None = None, max_pixels: int = LIMIT) -> np.ndarray:
    return np.asarray(load_film(View("x", data=data), size=size, max_pixels=max_pixels)).astype(int)


def reason(data: bytes) -> str:
    with pytest.raises(UnreadableFilm) as caught:
        show(data)
    return caught.value.reason


def peak(read) -> int:
    """Bytes that `read` holds at its highest."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deflated_files():
    assert np.array_equal(show(deflated(dataset(RAMP12))), show(dicom_bytes(RAMP12)))
    assert np.array_equal(show(deflated(dataset(RAMP12)), size=20), show(dicom_bytes(RAMP12), size=20))
    frames_of = dataset(np.stack([RAMP12, RAMP12 * 0, RAMP12]), NumberOfFrames=3)
    assert np.array_equal(show(deflated(frames_of)), show(dicom_bytes(RAMP12)))
    long_header = dataset(RAMP12)
    long_header.add_new(0x60003000, "OW", bytes(200_000))
    assert np.array_equal(show(deflated(long_header)), show(dicom_bytes(RAMP12)))
    assert reason(deflated(dataset(RAMP12, PixelData=None))) == "DICOM without pixel data"
    assert reason(deflated(dataset(RAMP12))[:-40]).startswith("damaged DICOM")


def test_a_deflated_file_unfolds_no_further_than_its_first_frame():
    bomb = deflated(dataset(RAMP12), after=256 << 20)
    assert len(bomb) < 2 << 20
    assert peak(lambda: show(bomb)) < 8 << 20
    large = dataset(np.zeros((4000, 4000), np.uint16))
    view = View("x", data=deflated(large))

    def refused():
        for read, options in ((load_film, {"size": 16}), (check_film, {})):
            with pytest.raises(UnreadableFilm, match=r"^4000x4000 pixels, more than data\.max_pixels$"):
                read(view, max_pixels=10**6, **options)

    assert peak(refused) < 8 << 20


@pytest.mark.parametrize("tag", ["SamplesPerPixel", "BitsAllocated"])
@pytest.mark.parametrize("pack", [deflated, lambda data, after: gzip.compress(encoded(data) + bytes(after), 1)])
def test_a_pixel_of_kilobytes_is_refused(tag, pack):
    bomb = pack(dataset(RAMP12, **{tag: 60000}), after=64 << 20)
    assert peak(lambda: reason(bomb)) < 8 << 20
    assert reason(bomb) == f"damaged DICOM ({tag} out of range)"
    with pytest.raises(UnreadableFilm, match="out of range"):
        check_film(View("x", data=bomb), max_pixels=LIMIT)


def test_a_deflated_header_without_end_is_refused():
    endless = dataset(RAMP12)
    endless.add_new(0x00091010, "OB", bytes(40 << 20))
    packed = deflated(endless)
    assert reason(packed) == "deflated DICOM whose header unfolds to more than 32 MiB"


def test_of_many_frames_only_the_first_is_held():
    count = 400
    stack = np.broadcast_to(RAMP12, (count, *RAMP12.shape))
    plain = dicom_bytes(stack, NumberOfFrames=count)
    assert len(plain) > 3 << 20
    assert peak(lambda: show(plain)) < 1 << 20
    assert np.array_equal(show(plain), show(dicom_bytes(RAMP12)))


def test_a_fragment_that_claims_too_much_is_refused():
    data = encoded(in_syntax(dataset(RAMP12, **SIZE12), JPEG2000Lossless, bytes(8 << 20)))
    assert reason(data) == "compressed frame larger than its DICOM header says"


def test_gzipped_files(tmp_path):
    packed = gzip.compress(dicom_bytes(RAMP12))
    assert film_type(packed[:1024]) == "dicom" and np.array_equal(show(packed), show(dicom_bytes(RAMP12)))
    (tmp_path / "G.dcm.gz").write_bytes(packed)
    assert kind_of(tmp_path / "G.dcm.gz") == "dicom"
    assert film_type(gzip.compress(b"study_id,image_path")) is None
    assert reason(packed[:-100]).startswith("damaged DICOM")
    bomb = gzip.compress(dicom_bytes(RAMP12) + bytes(64 << 20), 1)
    assert peak(lambda: show(bomb)) < 8 << 20
