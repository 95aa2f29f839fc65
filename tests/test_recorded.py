"""A training whose iterations are recorded and replayed ends as the plain one: rehearsed on the CPU with a tape of operators in the place of CUDA's graph."""

import contextlib
import re

import pytest
import torch
from test_train import assert_same, interrupted, run
from tiny import DT, MSC, items_of, write_data, write_protocol
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro.device import Compute, choose_algorithms, choose_device
from repro.protocol import load_protocol
from repro.run import __main__ as program
from repro.solver import recorded as module
from repro.solver.recorded import WARM_UP, CudaGraph, Recorded


class Tape(TorchDispatchMode):
    """Notes every operator below autograd with the tensors that it took and gave."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if not any(one.alias_info and not one.alias_info.is_write for one in operator._schema.returns):  # no view
            self.operators.append((operator, args, kwargs or {}, result))
        return result

    def play(self):
        """Does the operators again, without the Python that called them, and writes their results to where they were."""
        with torch.no_grad():
            for operator, args, kwargs, result in self.operators:
                again = operator(*args, **kwargs)
                if operator._schema.is_mutable:
                    continue
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


class TapedGraph:
    """Stands in for CUDA's: a recording does nothing and draws no random number; a replay fills the recording's tensors.

    Attributes:
        did: "plain", "recorded" and "replayed", in their order.
        tapes: Of the recordings.
    """

    def __init__(self):
        self.did, self.tapes = [], []

    def warm_up(self, work):
        self.did.append("plain")
        return work()

    def record(self, work):
        self.did.append("recorded")
        state, tape = torch.get_rng_state(), Tape()
        with tape:
            result = work()
        torch.set_rng_state(state)
        result.fill_(float("nan"))
        self.tapes.append(tape)

        def replay():
            self.did.append("replayed")
            tape.play()

        return replay, result


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return items_of(write_data(tmp_path_factory.mktemp("data") / "root"), "train")


@pytest.fixture
def settings(tmp_path):
    """Makes the settings of a row of the tiny protocol, changed, with overrides."""

    def make(*overrides, row="attention3-extra", change=()):
        path = write_protocol(tmp_path, ("width = 0.03125", "width = 0.015625"), *change)
        return load_protocol(path, overrides).row(row).settings

    return make


@pytest.fixture
def taped(monkeypatch):
    """Has trainings recorded on tapes; lists what every one of them did."""
    graphs = []

    def graph():
        graphs.append(TapedGraph())
        return graphs[-1]

    monkeypatch.setattr(module, "CudaGraph", graph)
    return graphs


RECORDED = Compute(torch.device("cpu"), cuda_graph=True)


@pytest.mark.parametrize(
    ("row", "change", "overrides"),
    [
        ("attention3-extra", (), ()),
        ("attention3-extra", (), ("solver.iter_size=2", "solver.clip_gradients=0.5")),
        ("attention3-extra", (DT,), ("model.lr_mult=[0,0]",)),
        ("baseline", (MSC,), ('solver.lr_policy="poly"',)),
    ],
    ids=["plain", "iter_size", "edge", "msc"],
)
def test_recorded_it_ends_the_same(items, settings, tmp_path, taped, row, change, overrides):
    made = settings(*overrides, row=row, change=change)
    whole = run(items, made, tmp_path / "plain")
    assert not taped
    assert_same(run(items, made, tmp_path / "recorded", compute=RECORDED), whole)
    (graph,) = taped
    assert graph.did == ["plain"] * WARM_UP + ["recorded"] + ["replayed"] * (6 - WARM_UP)
    assert not any(str(one[0]).startswith("aten._local_scalar_dense") for one in graph.tapes[0].operators)  # no waiting


def test_interrupted_before_and_after_the_recording_it_ends_the_same(items, settings, tmp_path, taped):
    whole = run(items, settings(), tmp_path / "whole")
    for at in (1, WARM_UP, WARM_UP + 1, WARM_UP + 2):
        interrupted(items, settings(), tmp_path / str(at), at, compute=RECORDED)
        assert_same(run(items, settings(), tmp_path / str(at), compute=RECORDED), whole)
    interrupted(items, settings(), tmp_path / "other", WARM_UP + 2, compute=RECORDED)
    assert_same(run(items, settings(), tmp_path / "other"), whole)


def test_cudas_graph_waits_for_what_was_begun_and_records_without_doing(monkeypatch):
    """The order of the calls alone: no GPU is needed, and none is proved."""
    said = []

    class Stream:
        def __init__(self, name="aside"):
            self.name = name

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            said.append("replay")

    @contextlib.contextmanager
    def within(thing):
        said.append(f"into {getattr(thing, 'name', 'the graph')}")
        yield
        said.append(f"out of {getattr(thing, 'name', 'the graph')}")

    here = Stream("here")
    for name, stand_in in {
        "Stream": Stream, "current_stream": lambda: here, "stream": within, "CUDAGraph": Graph, "graph": within,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graph = CudaGraph()
    assert graph.warm_up(lambda: said.append("work") or "result") == "result"
    assert said == ["aside waits for here", "into aside", "work", "out of aside", "here waits for aside"]
    said.clear()
    replay, result = graph.record(lambda: said.append("work") or "result")
    replay()
    assert (said, result) == (["into the graph", "work", "out of the graph", "replay"], "result")


def test_what_cannot_be_recorded_is_said():
    class Broken(TapedGraph):
        def record(self, work):
            raise RuntimeError("CUDA error: operation not permitted\n when stream is capturing")

    work = Recorded(lambda batches: sum(part.sum() for batch in batches for part in batch), Broken())
    for _ in range(WARM_UP):
        assert work([[torch.ones(2), torch.ones(3)]]) == 5
    message = "--cuda-graph: an iteration must be one that CUDA can record; got CUDA error: operation not permitted when stream is capturing; leave it out"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        work([[torch.ones(2), torch.ones(3)]])


def test_a_batch_of_another_shape_is_refused_and_not_stretched():
    work = Recorded(lambda batches: sum(part.sum() for batch in batches for part in batch), TapedGraph())
    for value in range(WARM_UP + 3):
        assert work([[torch.full((2,), value), torch.ones(3)]]) == 2 * value + 3
    message = "--cuda-graph: every iteration must have the shapes of the recorded one, [[(2,), (3,)]]; got [[(1,), (3,)]]; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        work([[torch.ones(1), torch.ones(3)]])


def test_several_processes_have_no_graph(monkeypatch):
    arguments = program.parse_arguments(["table1", "--cuda-graph", "--deterministic"])
    compute = program.make_options(arguments, torch.device("cuda", 0), synthetic=True).compute
    assert (compute.cuda_graph, compute.deterministic) == (True, True)
    monkeypatch.setattr(program, "world_size", lambda: 2)
    message = "--cuda-graph: must be one process's, for no graph holds the sums over several; got 2 processes; leave it out, or torchrun"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        program.make_options(arguments, torch.device("cuda", 0), synthetic=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_five_iterations_have_the_same_bits_with_and_without_the_graph(items, settings, tmp_path, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a torch built for it")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    device = choose_device("cuda", precision)
    choose_algorithms(device, deterministic=True)
    try:
        how = {"device": device, "precision": precision, "deterministic": True}
        made = settings("solver.max_iter=5", "solver.iter_size=2")
        whole = run(items, made, tmp_path / "plain", compute=Compute(**how))
        assert_same(run(items, made, tmp_path / "graph", compute=Compute(**how, cuda_graph=True)), whole)
        interrupted(items, made, tmp_path / "parts", WARM_UP + 1, compute=Compute(**how, cuda_graph=True))
        assert_same(run(items, made, tmp_path / "parts", compute=Compute(**how, cuda_graph=True)), whole)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
