"""Caffe's random numbers: raw 32-bit MT19937 draws and boost's shuffle."""

from collections.abc import Sequence

import numpy as np

MAX_DRAW = 2**32 - 1
_SKIP_BLOCK = 1 << 20


class CaffeRNG:
    """Caffe's generator: a 32-bit MT19937 seeded with one integer.

    Args:
        seed: int, 0 .. 2**32 - 1.

    Raises:
        ValueError: the seed is outside that range.

    Caffe: `Caffe::RNG` (src/caffe/common.cpp) holds a `boost::mt19937`; `caffe_rng_rand` (src/caffe/util/math_functions.cpp) is one raw draw.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= MAX_DRAW:
            raise ValueError(f"CaffeRNG: seed must be 0 .. {MAX_DRAW}; got {seed}; choose a seed of 32 bits")
        self._mt19937 = np.random.RandomState(seed)

    def draw(self, count: int) -> np.ndarray:
        """Returns the next `count` raw draws, (count,) uint32; blocks of any size give one and the same sequence."""
        return self._mt19937.randint(0, 2**32, size=count, dtype=np.uint32)

    def skip(self, count: int) -> None:
        """Passes over the next `count` raw draws."""
        for start in range(0, count, _SKIP_BLOCK):
            self.draw(min(_SKIP_BLOCK, count - start))

    def state(self) -> tuple[np.ndarray, int]:
        """Returns the generator's 624 words, uint32, and the position among them, from which it goes on."""
        _, words, index, *_ = self._mt19937.get_state()
        return words, int(index)

    def set_state(self, words: np.ndarray, index: int) -> None:
        """Goes on from a state that `state` gave."""
        self._mt19937.set_state(("MT19937", words, index))


def shuffle(order: Sequence[int], rng: CaffeRNG) -> list[int]:
    """Returns `order` shuffled as Caffe shuffles its list of images.

    From the last place down to the second, place i is swapped with place U(0, i).

    Args:
        order: the items in their present order.
        rng: the shuffle's own generator; it advances by len(order) - 1 draws and one for each redraw.

    Returns:
        A new list; `order` is left as it is.

    Caffe: `shuffle` (include/caffe/util/rng.hpp) over `boost::uniform_int`: draw // bucket, drawn again while above i.
    """
    order = list(order)
    last = np.arange(len(order) - 1, 0, -1, dtype=np.int64)
    bucket = MAX_DRAW // (last + 1) + (MAX_DRAW % (last + 1) == last)
    draws = rng.draw(len(last))
    while (rejected := np.flatnonzero(draws // bucket > last)).size:
        # The first rejected draw falls out and all later ones move up by one place, as if drawn one by one.
        draws = np.append(np.delete(draws, rejected[0]), rng.draw(1))
    for i, j in zip(last.tolist(), (draws // bucket).tolist(), strict=True):
        order[i], order[j] = order[j], order[i]
    return order
