"""The rule for what passes through a BLAS, oneDNN or cuDNN, where each processor rounds in an order of its own.

float64 proves the algorithm: our float64 result lies within FLOAT64 of Caffe's float64 program, wherever Caffe's is kept.

float32 proves the rounding: it lies within a bound of our float64 result that any order of summation keeps. The bound is computed, never typed, from the float64 program alone, so it
is the same on every machine:

- A sum of n terms errs in float32 by about sqrt(n) * u * sum|terms|, whatever the order, split or blocking (u = 2^-24; Higham and Mary, "A New Approach to Probabilistic Rounding
  Error Analysis", SIAM J. Sci. Comput. 41, 2019). A sum that cancels has a large sum|terms|, so its bound is wide because it is ill-conditioned, not because somebody widened it.
- The float64 program runs again with every sum of every convolution, forward and backward, and of every loss (which Caffe sums in float32), moved up or down by that much at random,
  and with every updated parameter moved by one rounding per step, always to the same side. An array's bound is its largest error over SAMPLES such runs (and over the steps of a solver run).
- A ReLU, a pooling window and a maximum of maps are decided in these runs as in the float64 run. What is left is smooth, and its spread is a bound.

A near-tie, which rounding may decide either way, makes gradients jump, so float32 is compared twice. With every decision taken from the float64 run (which is Caffe's, by its float64
twins), all arrays keep the bound, to the end of a run. With its own decisions, each that differs from float64's must be a near-tie (the candidates are nearer than twice the bound of
the compared values); maps and losses keep the bound through the first step with such a decision, gradients and parameters until then.

Caffe's own float32 arrays are one more order of summation and keep the bound too, as far as Caffe's run decided as its float64 run did. It recorded no decisions; where its arrays leave
the bound after some steps, they keep the spread of the perturbed runs with their own decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from repro.ops import interp

FLOAT64 = 1e-10  # relative to the array's largest value
SAMPLES = 3
SPACED = (257, 4097)
U = torch.finfo(torch.float32).eps / 2


class Step(NamedTuple):
    """What one step computes, by name.

    forward: Maps and losses, which a near-tie does not move.
    backward: Gradients and parameters after the step, which jump where a near-tie falls the other way.
    """

    forward: dict[str, torch.Tensor]
    backward: dict[str, torch.Tensor]


class Decision(NamedTuple):
    """Which candidates a ReLU, a pooling window or a maximum of maps chose in float64, and between which values."""

    winner: torch.Tensor
    values: torch.Tensor
    pick: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def signs(like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Draws -1 or 1 for each element."""
    return torch.randint(0, 2, like.shape, generator=random, dtype=torch.int8).to(like.dtype).mul_(2).sub_(1)


def magnitude(x: torch.Tensor) -> torch.Tensor:
    """Returns |x| in float32, which is enough for the size of an error."""
    return x.abs().float()


class PerturbedConvolution(torch.autograd.Function):
    """A convolution whose sums, forward and backward, are off by what float32 may make of them."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, random):
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, dilation, random
        y = torch.conv2d(x, weight, bias, stride, padding, dilation)
        terms = torch.conv2d(*map(magnitude, (x, weight, bias)), stride, padding, dilation)
        return y + U * math.sqrt(weight[0].numel() + 1) * terms * signs(y, random)

    @staticmethod
    def backward(ctx, dy):
        stride, padding, dilation, random = ctx.settings

        def sums(*operands):
            return torch.ops.aten.convolution_backward(
                *operands, [dy.shape[1]], stride, padding, dilation, False, [0, 0], 1, [True, True, True]
            )

        x, weight = ctx.saved_tensors
        counts = weight[:, 0].numel(), dy[:, 0].numel(), dy[:, 0].numel()  # of terms, for dx, dweight and dbias
        exact, terms = sums(dy, x, weight), sums(*map(magnitude, (dy, x, weight)))
        moved = [y + U * math.sqrt(n) * t * signs(y, random) for y, n, t in zip(exact, counts, terms, strict=True)]
        return *moved, None, None, None, None


def chosen_of_map(x: torch.Tensor, winner: torch.Tensor) -> torch.Tensor:
    """Reads the pooled values at the flat positions `winner` (N, C, H_out, W_out) of each map of x (N, C, H, W)."""
    y = x.flatten(2).gather(2, winner.flatten(2)).view(winner.shape)
    return y.contiguous(memory_format=torch.channels_last)


def chosen_of_maps(maps: torch.Tensor, winner: torch.Tensor) -> torch.Tensor:
    """Reads the values of the maps numbered `winner` (N, C, H, W) in a stack (S, N, C, H, W)."""
    return maps.gather(0, winner[None])[0]


def winning_map(maps: torch.Tensor) -> torch.Tensor:
    """Numbers the map that Caffe's Eltwise MAX chooses: 1 rather than 0 where they tie, a later one only where it is greater."""
    best, winner = maps[0], torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    for s, other in enumerate(maps[1:], start=1):
        taken = other >= best if s == 1 else other > best
        best, winner = torch.where(taken, other, best), winner.masked_fill(taken, s)
    return winner


class Arithmetic(TorchFunctionMode):
    """How one run computes: who decides, and whether its sums are perturbed. It must be entered around the whole run.

    Args:
        decisions: Of the float64 run, in the order of the calls; filled by that run itself, where the list is empty.
        replay: Whether the decisions are taken from the list.
        random: For a perturbed run: where the signs come from.
        bounds: Of the values that each decision compares; a perturbed run that replays widens them, a run with its own decisions is held to them.

    Attributes:
        tied_at: The first step with a decision that differs from float64's, or None.
    """

    def __init__(self, decisions: list[Decision], replay=False, random=None, bounds: list[float] | None = None):
        super().__init__()
        self.decisions, self.replay, self.random, self.bounds = decisions, replay, random, bounds
        self.records = not decisions
        self.called = self.step = 0
        self.tied_at: int | None = None
        self._drift: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.conv2d and self.random is not None:
            x, weight, bias, *geometry = (*args, *(None, 1, 0, 1, 1)[len(args) - 2 :])
            stride, padding, dilation = ([side, side] if isinstance(side, int) else list(side) for side in geometry[:3])
            assert geometry[3:] == [1]  # groups
            bias = torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias
            return PerturbedConvolution.apply(x, weight, bias, stride, padding, dilation, self.random)
        if func is torch.ops.repro.segmentation_loss and self.random is not None:
            (loss, *gradient), labels, shrink = func(*args, **kwargs), args[1], args[2]
            n = labels[:, ::shrink, ::shrink].numel()
            return loss + U * math.sqrt(n) * loss.detach() * signs(loss, self.random), *gradient
        if func is F.relu:
            return self.decide(args[0], lambda x: x > 0, torch.mul, lambda: func(*args, **kwargs))
        if func is F.max_pool2d:
            with_winners = {**kwargs, "return_indices": True}
            return self.decide(
                args[0], lambda x: func(x, *args[1:], **with_winners)[1], chosen_of_map, lambda: func(*args, **kwargs)
            )
        if func is torch.ops.repro.merge_scores and args[2] == "max":
            maps = torch.stack([interp(score, args[3]) for score in args[0]])
            merged = self.decide(maps, winning_map, chosen_of_maps, lambda: func(*args, **kwargs)[0])
            return merged, None
        return func(*args, **kwargs)

    def decide(self, x, choose, pick, free):
        """Decides between candidates in this run's way, and computes the result: the kernel's own, or the replayed winners'."""
        values = x.detach()
        if self.records:
            self.decisions.append(Decision(choose(values), values.clone(), pick))
            return free()
        call, self.called = self.called, self.called + 1
        winner, exact, _ = self.decisions[call]
        if self.replay:
            if self.random is not None:
                self.bounds[call] = max(self.bounds[call], peak(values - exact))
            return pick(x, winner.to(x.device))
        if self.random is None and self.tied_at in (None, self.step):
            own = choose(values).cpu()
            if not torch.equal(own, winner):
                gap = peak(pick(exact, winner) - pick(exact, own))
                assert gap <= 2 * self.bounds[call], (
                    f"decision {call}, step {self.step}: candidates {gap:.2e} apart in float64 changed places; rounding moves them by {self.bounds[call]:.2e}"
                )
                self.tied_at = self.step
        return free()

    @torch.no_grad()
    def end_step(self, parameters: Iterable[torch.Tensor]) -> None:
        """Ends a step of the solver; a perturbed run's parameters move by one rounding, each always to the same side."""
        self.step += 1
        if self.random is not None:
            for number, parameter in enumerate(parameters):
                if number not in self._drift:
                    self._drift[number] = 1 + U * signs(parameter, self.random)
                parameter.mul_(self._drift[number])

    def __exit__(self, *failure):
        super().__exit__(*failure)
        if failure[0] is None and not self.records:
            assert self.called == len(self.decisions), f"{self.called} decisions, {len(self.decisions)} in float64"


def peak(x: torch.Tensor) -> float:
    """Returns the largest absolute value, 0 of nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


def assert_within(actual: torch.Tensor, exact: torch.Tensor, bound: float, what: str) -> None:
    """Fails where an element is further than `bound` from the float64 result, or is not finite."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    error = peak(actual.detach().cpu().double() - exact)
    assert error <= bound, f"{what}: error {error:.2e}, bound {bound:.2e}, largest value {peak(exact):.2e}"


Compute = Callable[[torch.dtype, str, Arithmetic], list[Step]]


@dataclass
class Truth:
    """The float64 results of a computation, with the bounds of its float32 results.

    Args:
        compute: Computes steps in a dtype on a device under an arithmetic, from the same float32 inputs each time. It ends each step with `Arithmetic.end_step`.
        samples: How many perturbed runs.
    """

    compute: Compute
    samples: int = SAMPLES

    def __post_init__(self):
        self.decisions: list[Decision] = []
        self.steps = self.compute(torch.float64, "cpu", Arithmetic(self.decisions))
        self._decision_bounds = [0.0] * len(self.decisions)

    def spread(self, replay: bool) -> dict[str, float]:
        """Measures by name the largest errors of the perturbed runs."""
        largest: dict[str, float] = {}
        for seed in range(self.samples):
            random = torch.Generator().manual_seed(seed)
            arithmetic = Arithmetic(self.decisions, replay, random, self._decision_bounds)
            for got, exact in zip(self.compute(torch.float64, "cpu", arithmetic), self.steps, strict=True):
                for name, value in (exact.forward | exact.backward).items():
                    error = peak((got.forward | got.backward)[name] - value)
                    largest[name] = max(largest.get(name, 0.0), error)
        return largest

    @cached_property
    def bounds(self) -> dict[str, float]:
        """By name: what any order of summation keeps, with the decisions of float64."""
        return self.spread(replay=True)

    @cached_property
    def free_bounds(self) -> dict[str, float]:
        """By name: the spread where near-ties fall either way."""
        return self.spread(replay=False)

    def assert_is_caffes(self, caffe64: list[dict], device: str = "cpu") -> None:
        """Fails unless float64 on a device is Caffe's float64, of which each step holds what is kept."""
        steps = self.steps if device == "cpu" else self.compute(torch.float64, device, Arithmetic([]))
        for t, (ours, expected) in enumerate(zip(steps, caffe64, strict=True)):
            for name, caffe in expected.items():
                exact = torch.as_tensor(caffe, dtype=torch.float64)
                value = sampled((ours.forward | ours.backward)[name].cpu(), exact)
                assert_within(value, exact, FLOAT64 * (peak(exact) or 1.0), f"step {t}, {name}")

    def assert_holds_caffes_float32(self, caffe32: list[dict], bounds: dict[str, float]) -> None:
        """Fails unless Caffe's float32 arrays lie within `bounds` or `free_bounds` of our float64."""
        for t, (ours, expected) in enumerate(zip(self.steps, caffe32, strict=True)):
            for name, caffe in expected.items():
                value = torch.as_tensor(caffe)
                exact = sampled((ours.forward | ours.backward)[name], value)
                assert_within(value, exact, bounds[name], f"step {t}, {name}, of Caffe")

    def assert_holds_float32(self, device: str = "cpu") -> None:
        """Fails unless float32 on a device lies within the bounds, with float64's decisions and with its own."""
        bounds = self.bounds

        def compare(t: int, arrays: dict[str, torch.Tensor], how: str) -> None:
            exact = self.steps[t].forward | self.steps[t].backward
            for name, value in arrays.items():
                assert_within(value, exact[name], bounds[name], f"step {t}, {name}, {how}")

        replayed = self.compute(torch.float32, device, Arithmetic(self.decisions, replay=True))
        for t, step in enumerate(replayed):
            compare(t, step.forward | step.backward, "decided as in float64")
        arithmetic = Arithmetic(self.decisions, bounds=self._decision_bounds)
        free = self.compute(torch.float32, device, arithmetic)
        tied_at = len(free) if arithmetic.tied_at is None else arithmetic.tied_at
        for t, step in enumerate(free[: tied_at + 1]):
            compare(t, step.forward | (step.backward if t < tied_at else {}), "deciding itself")


def sampled(array: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Takes the elements of which Caffe's array was kept: all, every n-th of the flattened array, or SPACED many from its first to its last (tests/golden/README.md)."""
    if array.shape == like.shape:
        return array.detach()
    flat = array.detach().reshape(-1)
    if like.numel() in SPACED:
        return flat[torch.from_numpy(np.linspace(0, flat.numel() - 1, like.numel()).astype(np.int64))]
    return flat[:: -(-flat.numel() // like.numel())]
