"""Caffe's learning-rate policies. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")


def float32(value: float) -> float:
    """Rounds a hyper-parameter as Caffe's protobuf does: its fields are float32, in the float64 program too."""
    return float(np.float32(value))


def rate_drops(solver: Mapping, iteration: int, before: int) -> int:
    """Counts how often the rate has dropped when an iteration starts: Caffe's current_step, which its solver states keep.

    Args:
        solver: lr_policy with stepsize ("step") or stepvalue ("multistep", the iterations of the drops in ascending order).
        iteration: Counted from 0.
        before: The count at the iteration before; a multistep policy drops at most once an iteration.

    Caffe: src/caffe/solvers/sgd_solver.cpp, GetLearningRate.
    """
    if solver["lr_policy"] == "step":
        return iteration // solver["stepsize"]
    if solver["lr_policy"] == "multistep":
        values = solver["stepvalue"]
        return before + (before < len(values) and iteration >= values[before])
    return before


def learning_rate(solver: Mapping, iteration: int, drops: int = 0) -> float:
    """Computes the rate of one iteration.

    Args:
        solver: base_lr and lr_policy ("fixed", "step" with gamma and stepsize, "exp" with gamma, "inv" with gamma and power, "multistep" with
            gamma, "poly" with power and max_iter, "sigmoid" with gamma and stepsize).
        iteration: Counted from 0.
        drops: What `rate_drops` counts; only "multistep" needs it.

    Returns:
        The rate; infinite where it overflows.

    Raises:
        ValueError: Another policy.

    Caffe: src/caffe/solvers/sgd_solver.cpp, GetLearningRate.
    """
    base_lr = float32(solver["base_lr"])
    policy = solver["lr_policy"]
    if policy == "fixed":
        return base_lr
    if policy == "step":
        return base_lr * _power(float32(solver["gamma"]), iteration // solver["stepsize"])
    if policy == "exp":
        return base_lr * _power(float32(solver["gamma"]), iteration)
    if policy == "inv":
        return base_lr * _power(1.0 + float32(solver["gamma"]) * iteration, -float32(solver["power"]))
    if policy == "multistep":
        return base_lr * _power(float32(solver["gamma"]), drops)
    if policy == "poly":
        if solver["max_iter"] == 0:  # C divides, too
            done = math.inf if iteration else math.nan
        else:
            done = float32(iteration) / solver["max_iter"]
        return base_lr * _power(1.0 - done, float32(solver["power"]))
    if policy == "sigmoid":
        slope = -float32(solver["gamma"]) * (float(iteration) - solver["stepsize"])
        return base_lr * (1.0 / (1.0 + (math.exp(slope) if slope < 700 else math.inf)))
    names = ", ".join(f'"{name}"' for name in POLICIES[:-1])
    raise ValueError(
        f'learning_rate: lr_policy must be {names} or "{POLICIES[-1]}"; got {policy!r}; correct solver.lr_policy'
    )


def _power(base: float, exponent: float) -> float:
    """Raises to a power as C's pow does, which returns an infinity or NaN where Python would raise an error."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
    except ValueError:  # a negative base with a fraction, or 0 with a negative power
        return math.inf if base == 0 else math.nan
