"""Caffe's random numbers against what Caffe drew."""

from pathlib import Path

import numpy as np
import pytest
from caffe_dropout import dropout_mask

from repro.data.caffe_rng import CaffeRNG, shuffle

GOLDEN = Path(__file__).parent / "golden"


class Script:
    """Stands in for a generator: gives the draws it is told."""

    def __init__(self, *draws):
        self.left = list(draws)

    def draw(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        return np.array(taken, np.uint32)


def test_draws_are_mt19937_with_blocks_of_any_size():
    # The first outputs of the reference MT19937 for its default seed 5489.
    first = [3499211612, 581869302, 3890346734, 3586334585, 545404204]
    assert CaffeRNG(5489).draw(5).tolist() == first
    rng = CaffeRNG(5489)
    assert [*rng.draw(2).tolist(), *rng.draw(0).tolist(), *rng.draw(3).tolist()] == first


def test_skip_equals_drawing(monkeypatch):
    monkeypatch.setattr("repro.data.caffe_rng._SKIP_BLOCK", 7)
    skipping, drawing = CaffeRNG(3), CaffeRNG(3)
    skipping.skip(7 * 4 + 2)
    drawing.draw(7 * 4 + 2)
    assert skipping.draw(3).tolist() == drawing.draw(3).tolist()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_outside_32_bits(seed):
    with pytest.raises(
        ValueError, match=rf"^CaffeRNG: seed must be 0 .. 4294967295; got {seed}; choose a seed of 32 bits$"
    ):
        CaffeRNG(seed)


@pytest.mark.parametrize("run", ["train", "train_scale"])
def test_shuffle_gives_caffes_epoch_orders(run):
    golden = np.load(GOLDEN / "data_stream" / "batches.npz")
    values = dict(
        zip(golden[f"{run}/global_draw_names"].tolist(), golden[f"{run}/global_draw_values"].tolist(), strict=True)
    )
    rng = CaffeRNG(values["shuffle_seed"])
    order = list(range(golden[f"{run}/epoch_orders"].shape[1]))
    for expected in golden[f"{run}/epoch_orders"].tolist():
        order = shuffle(order, rng)
        assert order == expected


def test_shuffle_draws_again_above_the_bucket_range():
    # For i = 2 the bucket is (2**32 - 1) / 3 exactly, so the last draw of all would be 3 and is drawn again; the next gives 1: a c b.
    # For i = 1 the remainder is 1, which makes the bucket 2**31, so 2**31 - 1 gives 0: c a b.
    rng = Script(2**32 - 1, 2**31 - 1, 2**31 - 1, 77)
    assert shuffle("abc", rng) == ["c", "a", "b"]
    assert rng.left == [77]


@pytest.mark.parametrize("items", [[], ["a"]])
def test_shuffle_of_less_than_two_draws_nothing(items):
    assert shuffle(items, Script()) == items


def test_shuffle_leaves_its_argument_alone():
    order = list(range(50))
    assert sorted(shuffle(order, CaffeRNG(1))) == order == list(range(50))


def test_dropout_mask_is_caffes():
    golden = np.load(GOLDEN / "net_thin_dropout.npz")
    rng = CaffeRNG(1234)
    for step in range(3):
        for layer in golden["mask_order"].tolist():
            shape = tuple(golden[f"mask_shape/{layer}"].tolist())
            bits = np.unpackbits(golden[f"step{step}/mask_bits/{layer}"], count=int(np.prod(shape))).reshape(shape)
            np.testing.assert_array_equal(dropout_mask(shape, 0.5, rng), bits.astype(bool))


def test_dropout_mask_compares_in_double():
    # Half of 2**32 - 1 lies between 2**31 - 1 and 2**31; in float32, which goes in steps of 256 there, 2**31 + 128 would still be kept.
    rng = Script(2**31 - 1, 2**31, 2**31 + 128, 2**32 - 1, 0)
    assert dropout_mask((5,), 0.5, rng).tolist() == [True, False, False, False, True]


def test_dropout_mask_drops_the_draw_that_float32_would_keep():
    # Seen in Caffe itself: seed 120, element 82608.
    assert int(CaffeRNG(120).draw(82609)[-1]) == 2147483663
    assert not dropout_mask((82609,), 0.5, CaffeRNG(120))[-1]


def test_dropout_mask_keeps_everything_at_ratio_0_and_draws_all_the_same():
    rng = Script(2**32 - 1, 5)
    assert dropout_mask((1,), 0.0, rng).tolist() == [True]
    assert rng.left == [5]


def test_a_generator_goes_on_from_its_state():
    rng = CaffeRNG(5)
    rng.skip(700)
    words, index = rng.state()
    kept = words.copy(), index
    expected = rng.draw(2000)
    other = CaffeRNG(6)
    other.set_state(*kept)
    np.testing.assert_array_equal(other.draw(2000), expected)
