"""The sample file of a node.

- studies without text or without a film that is there are left out and counted; missing films are named
- samples are numbered by study id, however the table is cut into files
- labels end with the end token, but not where the report was cut
- a second call reads what the first one wrote, and writes it again where it was damaged since
- nothing to train on is an error that says why; once that is mended, the same call finds what is there
- the fingerprint tells other studies, and other lengths or films of the same ones
- an unreadable film met in training becomes a row without labels, remembered by name
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from megpt.config import DataConfig
from megpt.errors import InputError
from megpt.study import Study, View
from megpt.training.batches import Loader, pad
from megpt.training.order import Cutting, GlobalOrder
from megpt.training.samples import SampleSettings, open_samples, tokenizer_for


class Words:
    """A tokenizer of whole words."""

    eos_token_id = 1

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[2 + len(word) for word in text.split()] for text in texts]}


def opened(folder, studies, most=3, max_views=None):
    return open_samples(
        lambda: studies,
        folder=folder,
        settings=SampleSettings("report", "none", max_views),
        tokenize=tokenizer_for(Words(), most),
    )


def film_study(name, text, data=b"x", uri=None):
    return Study(name, views=(View(f"{name}-0", data=data, uri=uri),), report=text, split="train")


def test_what_is_left_out(tmp_path):
    there = tmp_path / "film.png"
    there.write_bytes(b"x")
    samples = opened(
        tmp_path / "s",
        [
            film_study("c", "a bb ccc dddd"),
            film_study("a", "a bb"),
            film_study("b", "one", data=None, uri=str(there)),
            film_study("d", "  "),
            film_study("e", None),
            film_study("f", "gone", data=None, uri=str(tmp_path / "none.png")),
            Study("g", report="no views at all", split="train"),
        ],
    )
    assert [samples.study(i).study_id for i in range(len(samples))] == ["a", "b", "c"]
    assert [samples.labels(i).tolist() for i in range(3)] == [[3, 4, 1], [5, 1], [3, 4, 5]]
    assert samples.num_tokens.tolist() == [3, 2, 3] and samples.num_views.tolist() == [1, 1, 1]
    assert samples.left_out == {"no text to learn": 2, "film missing": 2}
    assert [(row["study_id"], row["error"]) for row in samples.failed] == [("f", "film missing"), ("g", "film missing")]


def test_the_numbering_does_not_depend_on_the_files(tmp_path):
    studies = [film_study(f"s{i:03}", "x " * (1 + i % 3)) for i in range(600)]
    one = opened(tmp_path / "one", studies)
    other = opened(tmp_path / "other", studies[::-1])
    assert [one.study(i) for i in range(600)] == [other.study(i) for i in range(600)]
    again = opened(tmp_path / "one", [])
    assert np.array_equal(again.num_tokens, one.num_tokens) and len(again) == 600


def test_a_damaged_file_is_written_again(tmp_path, capsys):
    studies = [film_study("a", "one"), film_study("b", "one two")]
    opened(tmp_path, studies)
    os.truncate(tmp_path / "samples.arrow", 100)
    assert opened(tmp_path, studies).num_tokens.tolist() == [2, 3]
    assert "is damaged (ArrowInvalid) and is written again" in " ".join(capsys.readouterr().err.split())


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(InputError, match="no study can be trained on") as raised:
        opened(tmp_path / "s", [film_study("d", " ")])
    assert "where: 1 × no text to learn" in str(raised.value)
    assert len(opened(tmp_path / "s", [film_study("d", "text")])) == 1


def test_the_fingerprint(tmp_path):
    def of(name, *studies):
        return opened(tmp_path / name, studies).fingerprint

    a, b = film_study("a", "one"), film_study("b", "one two")
    two_films = Study("b", views=b.views * 2, report="one two", split="train")
    assert of("1", a, b) == of("2", b, a)
    others = [
        of("3", a),
        of("4", a, film_study("c", "one two")),
        of("5", a, film_study("b", "one")),
        of("6", a, two_films),
    ]
    assert len({of("1"), *others}) == 5


@pytest.mark.parametrize("threads", [0, 2])
def test_an_unreadable_film_has_no_labels(tmp_path, threads, small_studies):
    from megpt.data.studies import read_studies
    from megpt.model.processing import MeGPTImageProcessor

    good = list(read_studies(small_studies, "train", limit=3))
    studies = [*good, film_study("zz", "torn film", data=good[0].views[0].data[:60])]
    samples = opened(tmp_path / "s", studies)
    loader = Loader(
        samples,
        GlobalOrder(4, 4, seed=0),
        Cutting.of(4, None, 1),
        rank=0,
        process=MeGPTImageProcessor(image_size=32),
        image_size=32,
        data=DataConfig(),
        threads=threads,
        last_step=1,
    )
    with loader:
        (batch,) = loader.step(0)
    row = batch.indices.tolist().index(3)
    assert set(batch.failed) == {3} and (batch.labels[row] == -100).all()
    assert batch.pixel_values.shape == (4, 2, 3, 32, 32) and loader.num_tokens(0) == samples.num_tokens.sum()


def test_padding():
    assert pad([np.array([5, 1]), np.array([], int)]).tolist() == [[5, 1], [-100, -100]]
    assert pad([np.array([], int)]).tolist() == [[-100]]
