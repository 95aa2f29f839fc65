"""Caffe's learning-rate policies. Needs no torch."""

from __future__ import annotations

import math

import numpy as np


def float32(value: float) -> float:
    """Rounds a hyper-parameter as Caffe's protobuf does: its fields are float32, in the float64 program too."""
    return float(np.float32(value))


def learning_rate(solver: dict, iteration: int) -> float:
    """Computes the rate of one iteration.

    Args:
        solver: The protocol's table: base_lr and lr_policy ("fixed", "step" with gamma and stepsize, "poly" with power and max_iter).
        iteration: Counted from 0.

    Raises:
        ValueError: Another policy.

    Caffe: src/caffe/solvers/sgd_solver.cpp, GetLearningRate.
    """
    base_lr = float32(solver["base_lr"])
    policy = solver["lr_policy"]
    if policy == "fixed":
        return base_lr
    if policy == "step":
        return base_lr * math.pow(float32(solver["gamma"]), iteration // solver["stepsize"])
    if policy == "poly":
        return base_lr * math.pow(1.0 - float32(iteration) / solver["max_iter"], float32(solver["power"]))
    raise ValueError(
        f'learning_rate: lr_policy must be "fixed", "step" or "poly"; got {policy!r}; correct solver.lr_policy'
    )
