"""Caffe's SGD solver: its order of update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from repro.solver.lr_policy import float32, learning_rate


class Solver:
    """Stochastic gradient descent with momentum, as Caffe computes it.

    Per iteration: the gradient summed over iter_size batches, clipped on its global L2 norm, divided by iter_size, plus weight_decay * decay_mult * w; then
    V = momentum * V + lr * lr_mult * g and w -= V. The rate is inside V: history keeps an old rate when the rate drops, unlike in torch.optim.SGD.

    A parameter whose lr_mult is 0 is kept fixed: no gradient is computed for it, and it and its momentum stay bit for bit.

    Args:
        layers: Convolutions by layer name.
        solver: The protocol's table: momentum, weight_decay, iter_size, clip_gradients (0 for none) and learning_rate's keys.
        lr_mult: For a layer name, its (weight, bias) multipliers of the rate.
        decay_mult: (weight, bias) multipliers of weight_decay, for all layers.

    Attributes:
        parameters: Every parameter, fixed ones too, in Caffe's order of learnable parameters.
        history: V of every parameter, by "<layer>.weight" and "<layer>.bias", in the same order.
        iteration: The next iteration, counted from 0.

    Raises:
        ValueError: Every parameter is kept fixed.

    Caffe: src/caffe/solvers/sgd_solver.cpp: ApplyUpdate, ClipGradients, Normalize, Regularize, ComputeUpdateValue; src/caffe/net.cpp, Init (a lr_mult of 0 stops the backward pass).
    Deviates: Caffe still decays the momentum of a fixed parameter, which its solver never makes other than 0.
    """

    def __init__(
        self,
        layers: dict[str, nn.Conv2d],
        solver: dict,
        lr_mult: dict[str, Sequence[float]],
        decay_mult: Sequence[float],
    ):
        self.solver = solver
        self.iteration = 0
        self.parameters: list[nn.Parameter] = []
        self.history: dict[str, torch.Tensor] = {}
        self._learned: list[str] = []  # of the parameters that are not kept fixed, as are the lists below
        self._lr_mult: list[float] = []
        self._decay: list[float] = []
        for name, layer in layers.items():
            for which, blob in enumerate(("weight", "bias")):
                parameter, rate = getattr(layer, blob), float32(lr_mult[name][which])
                self.parameters.append(parameter)
                self.history[f"{name}.{blob}"] = torch.zeros_like(parameter)
                parameter.requires_grad_(rate != 0)
                if rate != 0:
                    self._learned.append(f"{name}.{blob}")
                    self._lr_mult.append(rate)
                    self._decay.append(float32(solver["weight_decay"]) * float32(decay_mult[which]))
        if not self._learned:
            raise ValueError(
                "Solver: a layer must be trained; got lr_mult 0 for all; raise model.lr_mult or fc8_lr_mult"
            )

    def zero_grad(self) -> None:
        """Forgets the gradients, before the first of the iteration's iter_size batches."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> float:
        """Updates every parameter that is not kept fixed from its gradient, which must be the sum over the iteration's batches, and moves to the next iteration.

        Returns:
            The rate used.

        Raises:
            RuntimeError: A parameter has no gradient.
        """
        rate = learning_rate(self.solver, self.iteration)
        parameters = [p for p in self.parameters if p.requires_grad]
        missing = [name for name, p in zip(self._learned, parameters, strict=True) if p.grad is None]
        if missing:
            raise RuntimeError(
                f"Solver.step: every parameter must have a gradient; got none for {', '.join(missing)}; call backward first"
            )
        gradients = [p.grad for p in parameters]
        limit = float32(self.solver["clip_gradients"])
        if limit > 0:
            clip_gradients(gradients, limit)
        prepare_gradients(gradients, parameters, self.solver["iter_size"], self._decay)
        history = [self.history[name] for name in self._learned]
        momentum_update(gradients, history, [rate * m for m in self._lr_mult], float32(self.solver["momentum"]))
        torch._foreach_sub_(parameters, history)
        self.iteration += 1
        return rate


def clip_gradients(gradients: list[torch.Tensor], limit: float) -> float:
    """Scales gradients down, in place, until the L2 norm of all of them together is at most the limit; returns the norm before.

    Caffe: SGDSolver::ClipGradients.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])).item()
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return norm


def prepare_gradients(
    gradients: list[torch.Tensor], parameters: list[torch.Tensor], iter_size: int, decay: list[float], kind: str = "L2"
) -> None:
    """Divides summed gradients by iter_size and adds the weight decay, in place.

    Args:
        gradients, parameters: One of each for every parameter.
        iter_size: Batches that were summed.
        decay: weight_decay * decay_mult of every parameter.
        kind: "L2" adds decay * w, "L1" adds decay * sign(w).

    Caffe: SGDSolver::Normalize, SGDSolver::Regularize.
    """
    if iter_size > 1:
        torch._foreach_mul_(gradients, 1.0 / iter_size)
    pull = parameters if kind == "L2" else torch._foreach_sign(parameters)
    torch._foreach_add_(gradients, torch._foreach_mul(pull, decay))


def momentum_update(
    gradients: list[torch.Tensor], history: list[torch.Tensor], rates: list[float], momentum: float
) -> None:
    """Computes history = momentum * history + rate * gradient in place; the gradients are overwritten.

    Caffe: SGDSolver::ComputeUpdateValue.
    """
    torch._foreach_mul_(gradients, rates)
    torch._foreach_mul_(history, momentum)
    torch._foreach_add_(history, gradients)
