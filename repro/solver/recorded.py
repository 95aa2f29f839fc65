"""A GPU's work of an iteration, recorded once as a CUDA graph and then started by one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

WARM_UP = 3  # calls before the recording: by then cuDNN has chosen its algorithms, and libraries have allocated what they keep

Work = Callable[[], torch.Tensor]


class CudaGraph:
    """Warms up and records on the current GPU, as torch's notes on CUDA graphs say."""

    def __init__(self):
        self._aside = (
            torch.cuda.Stream()
        )  # one for all calls: what torch keeps of a stream's memory serves no other stream

    def warm_up(self, work: Work) -> torch.Tensor:
        """Does the work on a stream of its own: nothing that autograd keeps may belong to the default stream, which no recording may wait for."""
        here = torch.cuda.current_stream()
        self._aside.wait_stream(here)
        with torch.cuda.stream(self._aside):
            result = work()
        here.wait_stream(self._aside)
        return result

    def record(self, work: Work) -> tuple[Callable[[], None], torch.Tensor]:
        """Records the work without doing it; returns what does it, and where its result will be."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        return graph.replay, result


class Recorded:
    """Work on batches of the same shapes: done as it is in the first calls, then recorded, and from then on replayed.

    A replay writes what the recording wrote, at the same addresses: the result is one and the same tensor, and gradients that were None before the recorded backward pass
    are overwritten, not added to. What Python does in the work, it does not do again. Random numbers are those of a plain call, for a replay takes the seed and the
    position of torch's generator as they are when it starts.

    Args:
        work: From the batches of an iteration to a tensor on the device; it may read and write nothing else of another iteration's than what stays at its address.
        graph: What records; another one in tests.
    """

    def __init__(
        self, work: Callable[[Iterable[Sequence[torch.Tensor]]], torch.Tensor], graph: CudaGraph | None = None
    ):
        self._work, self._graph = work, graph or CudaGraph()
        self._calls = 0
        self._inputs: list[list[torch.Tensor]] = []
        self._replay: Callable[[], None] | None = None
        self._result: torch.Tensor | None = None

    def __call__(self, batches: Iterable[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Does the work.

        Args:
            batches: Of one iteration, on the device.

        Returns:
            The work's result; the next call overwrites it.

        Raises:
            RuntimeError: It cannot be recorded.
            ValueError: The batches have other shapes than those recorded.
        """
        given = [list(batch) for batch in batches]
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._graph.warm_up(lambda: self._work(given))
        if self._replay is None:
            self._inputs = [[part.clone() for part in batch] for batch in given]
            try:
                self._replay, self._result = self._graph.record(lambda: self._work(self._inputs))
            except RuntimeError as error:
                raise RuntimeError(
                    f"--cuda-graph: an iteration must be one that CUDA can record; got {' '.join(str(error).split())[:200]}; leave it out"
                ) from error
        else:
            self._take(given)
        self._replay()
        return self._result

    def _take(self, given: list[list[torch.Tensor]]) -> None:
        """Copies batches to where the recorded work reads them."""
        shapes, recorded = ([[tuple(part.shape) for part in batch] for batch in some] for some in (given, self._inputs))
        if shapes != recorded:
            raise ValueError(
                f"--cuda-graph: every iteration must have the shapes of the recorded one, {recorded}; got {shapes}; leave it out"
            )
        for batch, own in zip(given, self._inputs, strict=True):
            for part, at in zip(batch, own, strict=True):
                at.copy_(part)
