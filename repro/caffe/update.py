"""The end of an iteration: the gradients' way into the parameters, and the history that a solver state keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from repro.caffe.log import info, number
from repro.caffe.net import Learnable
from repro.caffe.proto import Typed
from repro.caffe.solver_rules import RULES, TWO_HISTORIES
from repro.solver.lr_policy import learning_rate, rate_drops
from repro.solver.sgd import clip_gradients, prepare_gradients

_RATE_FIELDS = ("base_lr", "lr_policy", "gamma", "power", "stepsize", "stepvalue", "max_iter")


class Update:
    """Applies a solver's updates to a net's learnable parameters.

    Args:
        param: The SolverParameter.
        kind: The solver's type, one of RULES.
        learnable: The parameters.

    Attributes:
        history: Caffe's history_: one tensor for every parameter, with Adam and AdaDelta a second one for each behind all the first.
        current_step: Drops of the rate so far.

    Caffe: src/caffe/solvers/sgd_solver.cpp.
    """

    def __init__(self, param: Typed, kind: str, learnable: Sequence[Learnable]):
        self._param, self._kind, self._learnable = param, kind, learnable
        copies = 2 if kind in TWO_HISTORIES else 1
        self.history = [
            torch.zeros_like(entry.tensor, requires_grad=False) for _ in range(copies) for entry in learnable
        ]
        self.current_step = 0
        self._restored = False

    @torch.no_grad()
    def apply(self, iteration: int) -> float:
        """Updates the parameters from their gradients, which are summed over the iteration's passes and may be overwritten.

        Args:
            iteration: Counted from 0.

        Returns:
            The rate used.

        Caffe: ApplyUpdate.
        """
        param = self._param
        rate = self._rate(iteration)
        if param.display and iteration % param.display == 0:
            info(f"Iteration {iteration}, lr = {number(rate)}")
        # A frozen parameter has no gradient; where no history moves it, it is left alone, which is what Caffe's arithmetic comes to.
        moved = [i for i, entry in enumerate(self._learnable) if entry.lr_mult != 0 or self._frozen_history_moves()]
        if not moved:
            return rate
        entries = [self._learnable[i] for i in moved]
        tensors = [entry.tensor for entry in entries]
        gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
        self._clip(gradients)
        decay = [param.weight_decay * entry.decay_mult for entry in entries]
        prepare_gradients(gradients, tensors, param.iter_size, decay, param.regularization_type)
        rates = [rate * entry.lr_mult for entry in entries]
        places = moved + [i + len(self._learnable) for i in moved] * (self._kind in TWO_HISTORIES)
        update = RULES[self._kind](gradients, [self.history[i] for i in places], rates, param, iteration)
        torch._foreach_sub_(tensors, update)
        return rate

    def _rate(self, iteration: int) -> float:
        table = {name: getattr(self._param, name) for name in _RATE_FIELDS}
        before = self.current_step
        self.current_step = rate_drops(table, iteration, before)
        if self._param.lr_policy == "multistep" and self.current_step > before:
            info(f"MultiStep Status: Iteration {iteration}, step = {self.current_step}")
        return learning_rate(table, iteration, self.current_step)

    def _frozen_history_moves(self) -> bool:
        """Whether the history of a frozen parameter may change: after a state with momentum, and in solvers that remember squares of the decay."""
        return self._restored or (self._kind not in ("SGD", "Nesterov") and self._param.weight_decay != 0)

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        limit = self._param.clip_gradients
        if limit < 0:
            return
        norm = clip_gradients(gradients, limit)
        if norm > limit:
            info(
                f"Gradient clipping: scaling down gradients (L2 norm {number(norm)} > {number(limit)}) by scale factor {number(limit / norm)}"
            )

    @torch.no_grad()
    def restore(self, history: Sequence[torch.Tensor], current_step: int) -> None:
        """Takes over the history and the count of drops of a solver state."""
        for value, kept in zip(self.history, history, strict=True):
            value.copy_(kept.reshape(value.shape))
        self.current_step, self._restored = current_step, True
