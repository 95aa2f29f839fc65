"""Attention against object size: what the weights of every scale, by object size, say to the paper's statement on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from repro.records.claims import Claim, Pair
from repro.records.verdict import Measured, measure

Bin = Mapping[
    str, Any
]  # of figures.json's attention_by_size: "n_objects", and by scale "mean_weight" and "std" over the bin's objects


def halves(bins: Sequence[Bin]) -> tuple[list[Bin], list[Bin]] | None:
    """Splits bins, which come by size, into those of the smaller and of the larger half of the objects, as nearly as bins allow; None where all objects lie in one bin."""
    filled = [one for one in bins if one["n_objects"]]
    total, before, small = sum(one["n_objects"] for one in filled), 0, 0
    while small < len(filled) - 1 and 2 * (before + filled[small]["n_objects"]) <= total:
        before += filled[small]["n_objects"]
        small += 1
    small = max(small, 1)
    return (filled[:small], filled[small:]) if len(filled) > 1 else None


def _weight(half: Sequence[Bin], scale: int) -> tuple[float, float]:
    """Computes the mean weight of a scale over a half's objects, and the square of its standard error."""
    count = sum(one["n_objects"] for one in half)
    mean = sum(one["n_objects"] * one["mean_weight"][scale] for one in half) / count
    square = sum(one["n_objects"] * (one["std"][scale] ** 2 + one["mean_weight"][scale] ** 2) for one in half) / count
    return mean, max(square - mean**2, 0.0) / count


def larger_objects(bins: Sequence[Bin], scale: int) -> Measured | None:
    """Computes by how much more weight a scale has on the larger half of the objects than on the smaller half.

    Args:
        bins: By size.
        scale: Which.

    Returns:
        The difference in percentage points of weight, with its standard error over objects as the spread; None where all objects lie in one bin.
    """
    if (split := halves(bins)) is None:
        return None
    (small_mean, small_error), (large_mean, large_error) = (_weight(half, scale) for half in split)
    return Measured(100 * (large_mean - small_mean), 100 * math.sqrt(small_error + large_error), 1)


def by_row(curves: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups curves by row."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for curve in curves:
        rows.setdefault(curve["row"], []).append(curve)
    return rows


class Lead(NamedTuple):
    """Which scale has the most weight on small objects and on large ones, in one row.

    scales: The row's.
    smaller, larger: Their mean weights on the smaller and on the larger half of the objects, of all seeds.
    """

    scales: list[float]
    smaller: list[float]
    larger: list[float]

    @property
    def answer(self) -> str:
        """Whether the finest scale leads on small objects, and the coarsest on large ones."""
        finest = self.smaller[self.scales.index(max(self.scales))] == max(self.smaller)
        coarsest = self.larger[self.scales.index(min(self.scales))] == max(self.larger)
        if finest and coarsest:
            return "yes"
        return "on small objects alone" if finest else "on large objects alone" if coarsest else "on neither"

    def __str__(self) -> str:
        """Writes the weights."""
        written = (
            f"on the {half} half of the objects "
            + ", ".join(f"scale {scale:g} {weight:.2f}" for scale, weight in zip(self.scales, weights, strict=True))
            for half, weights in (("smaller", self.smaller), ("larger", self.larger))
        )
        return "; ".join(written)


def leads(curves: Iterable[Mapping[str, Any]]) -> dict[str, Lead]:
    """Computes of every row which scale leads; without those whose objects all lie in one bin. Curves as for `size_claim`."""
    found = {}
    for row, ours in by_row(curves).items():
        scales = ours[0]["scales"]
        split = [both for curve in ours if (both := halves(curve["bins"])) is not None]
        if split:
            means = [
                [statistics.fmean(_weight(both[half], scale)[0] for both in split) for scale in range(len(scales))]
                for half in (0, 1)
            ]
            found[row] = Lead(scales, *means)
    return found


def lead_verdict(found: Mapping[str, Lead]) -> str:
    """Answers in one sentence whether the finest scale leads on small objects and the coarsest on large ones, row by row."""
    ends = {(max(lead.scales), min(lead.scales)) for lead in found.values()}
    scales = [f"scale {end:g}" for end in ends.pop()] if len(ends) == 1 else ["the finest scale", "the coarsest"]
    answers: dict[str, list[str]] = {}
    for row, lead in found.items():
        answers.setdefault(lead.answer, []).append(row)
    said = "; ".join(
        f"{answer} in {', '.join(rows)}" for answer, rows in sorted(answers.items(), key=lambda one: -len(one[1]))
    )
    question = f"Does {scales[0]} lead on small objects and {scales[1]} on large ones?"
    return f"{question} {said[:1].upper()}{said[1:]}." if said else f"{question} Not measured."


def size_claim(curves: Iterable[Mapping[str, Any]]) -> Claim:
    """Holds the attention weights of objects of every size against the paper's statement on them.

    Args:
        curves: Of figures.json's attention_by_size: "row", "seed", "scales" and "bins"; of one row all have the same scales.

    Returns:
        The claim, with two pairs for every row: by how many percentage points of weight the finest scale prefers the smaller half of the objects, and the
        coarsest the larger half. The spread is that over seeds or, with one seed, the standard error over objects.

    Paper: section 4: scale 1 attends to small objects, scale 0.5 to large ones.
    """
    pairs = []
    for row, found in by_row(curves).items():
        scales = found[0]["scales"]
        for scale, sign, order in ((max(scales), -1, ("smaller", "larger")), (min(scales), 1, ("larger", "smaller"))):
            seeds = [larger_objects(curve["bins"], scales.index(scale)) for curve in found]
            known = [one._replace(mean=sign * one.mean) for one in seeds if one is not None]
            difference = measure(one.mean for one in known) if len(known) > 1 else next(iter(known), None)
            upper, lower = (f"{row}, scale {scale:g} on the {half} half of the objects" for half in order)
            pairs.append(Pair(upper, lower, None, difference))
    return Claim("attention looks at small objects in the finest scale, at large ones in the coarsest", tuple(pairs))
