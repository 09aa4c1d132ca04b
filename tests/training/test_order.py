"""The order of samples.

- every epoch holds each sample exactly once, whatever the batch size
- the order depends on seed and epoch only, and the values are pinned
- resuming at any step gives the batches that follow it
- cutting a batch for any number of workers loses and repeats nothing
- with a micro batch the pieces do not depend on the number of workers
- a batch that does not fit is an error
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.training.order import Cutting, GlobalOrder, Position

sizes = st.integers(1, 400)
PINNED_0 = [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]
PINNED_1 = [1, 2, 8, 5, 3, 9, 6, 0, 4, 7]


@given(sizes, st.integers(1, 64), st.integers(-5, 2**40), st.integers(0, 3))
def test_an_epoch_holds_each_sample_once(samples, batch, seed, epoch):
    order = GlobalOrder(samples, batch, seed)
    first = epoch * order.steps_per_epoch
    batches = [order.batch(step) for step in range(first, first + order.steps_per_epoch)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(samples))
    assert all(len(b) == batch for b in batches[:-1]) and 0 < len(batches[-1]) <= batch


def test_the_order_is_pinned():
    """A change here changes every run and breaks resuming: it must be deliberate."""
    assert GlobalOrder(10, 4, 42).permutation(0).tolist() == PINNED_0
    assert GlobalOrder(10, 4, 42).permutation(1).tolist() == PINNED_1
    assert GlobalOrder(10, 4, 43).permutation(0).tolist() != PINNED_0


@given(sizes, st.integers(1, 64), st.integers(0, 100))
def test_a_later_start_gives_the_same_batches(samples, batch, step):
    assert np.array_equal(GlobalOrder(samples, batch, 7).batch(step), walked(GlobalOrder(samples, batch, 7), step))


def walked(order, step):
    """The batch at `step` after asking for all before it, as an uninterrupted run does."""
    for before in range(step):
        order.batch(before)
    return order.batch(step)


def test_positions():
    order = GlobalOrder(10, 4, 0)
    assert order.steps_per_epoch == 3
    assert [order.position(step) for step in (0, 2, 3, 7)] == [
        Position(0, 0),
        Position(0, 2),
        Position(1, 0),
        Position(2, 1),
    ]


@given(st.integers(1, 64), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 16)))
def test_cutting_loses_and_repeats_nothing(samples, workers, micro):
    batch = np.arange(100, 100 + samples)
    cutting = Cutting.of(samples, micro, workers)
    pieces = cutting.cut(batch)
    assert len(pieces) == workers and all(len(mine) == cutting.slots for mine in pieces)
    assert sorted(np.concatenate([p for mine in pieces for p in mine]).tolist()) == batch.tolist()


@given(st.integers(1, 64), st.integers(1, 16))
def test_pieces_do_not_depend_on_the_workers(samples, micro):
    batch = np.arange(samples)

    def pieces(workers):
        cuts = Cutting.of(samples, micro, workers).cut(batch)
        return sorted(tuple(p.tolist()) for mine in cuts for p in mine if len(p))

    assert pieces(1) == pieces(2) == pieces(4)


def test_a_batch_that_does_not_fit():
    with pytest.raises(ValueError, match="4 pieces do not fit 2 workers × 1"):
        Cutting.of(4, 2, 2).cut(np.arange(8))


@pytest.mark.parametrize("samples, batch", [(0, 4), (4, 0)])
def test_an_empty_order_is_refused(samples, batch):
    with pytest.raises(ValueError, match="must be positive"):
        GlobalOrder(samples, batch, 0)
