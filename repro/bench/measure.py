"""One case from inputs to results: contestants, agreement, memory, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from repro import ops
from repro.bench import eager, memory, opencv
from repro.bench.agreement import Disagreement, Inputs, call, check, make_inputs, prepare, tolerance_of, truth
from repro.bench.cases import CRF, FORWARD, Case, ideal_bytes
from repro.bench.least import least_work
from repro.bench.results import with_ratios
from repro.bench.timing import WARM_UP, Clock, OnHost, Timing, take_turns

try:
    from pydensecrf import densecrf  # of the extra "bench"
except ImportError:
    densecrf = None

Function = Callable[..., torch.Tensor]
CUDA_INPUT_SETS = (
    3  # used in turn; on the CPU the other contestants' tensors pass through the caches between two calls of one
)


@dataclass
class Session:
    """What all cases of a run share.

    clock: Of the device.
    dtype: Of the maps.
    copy_bandwidth: Of the device, bytes per second.
    repeats: Timed calls of each contestant at most.
    budget: Time for them in one direction of one case, seconds.
    compiles: Whether torch.compile competes.
    left_out: Contestants that failed or disagreed, where, and why; filled here.
    """

    clock: Clock
    dtype: torch.dtype
    copy_bandwidth: float
    repeats: int
    budget: float
    compiles: bool
    left_out: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, contestant: str, reason: object, case: Case, direction: str) -> None:
        """Notes that a contestant has no result in one direction of a case."""
        where = {"op": case.op, "case": case.name, "direction": direction}
        self.left_out.append({"contestant": contestant, "reason": " ".join(str(reason).split())[:300], **where})


def pydensecrf(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Runs dense_crf's case as pydensecrf does, Kraehenbuehl's own library; its default normalisation is another than Caffe's."""
    (_, c, height, width), crf = scores.shape, dict(CRF)
    field = densecrf.DenseCRF2D(width, height, c)
    field.setUnaryEnergy(-scores[0].reshape(c, -1).numpy())
    after = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_AFTER}
    field.addPairwiseGaussian(sxy=crf["pos_xy_std"], compat=crf["pos_w"], **after)
    pixels = image[0].permute(1, 2, 0).contiguous().numpy()
    field.addPairwiseBilateral(sxy=crf["bi_xy_std"], srgb=crf["bi_rgb_std"], rgbim=pixels, compat=crf["bi_w"], **after)
    return torch.from_numpy(np.array(field.inference(crf["iterations"]))).reshape(scores.shape)


def contestants(
    case: Case, device: torch.device, compiles: bool
) -> Iterator[tuple[str, Function, torch.memory_format, torch.device]]:
    """Lists name, function of (maps, logits, labels), layout of the maps that it is given, and where they lie; "compile" is still to be compiled.

    The kernels work on channels_last maps, as the network makes them. Eager PyTorch competes in that layout and in the contiguous one, without being
    charged for a conversion.
    """
    yield "ours", lambda *tensors: call(ops, case, *tensors), torch.channels_last, device
    yield "eager", lambda *tensors: call(eager, case, *tensors), torch.channels_last, device
    if case.sides:  # labels have one layout
        yield "eager-nchw", lambda *tensors: call(eager, case, *tensors), torch.contiguous_format, device
    if case.op in ("domain_transform", "dense_crf") and device.type == "cuda":
        yield "cpu", lambda *tensors: call(ops, case, *tensors), torch.channels_last, torch.device("cpu")
    if case.op == "dense_crf":  # whose number of vertices no compiler knows
        if densecrf is not None and device.type == "cpu":
            yield (
                "pydensecrf",
                lambda maps, _, images: pydensecrf(maps[0].float(), images[0]),
                torch.contiguous_format,
                device,
            )
    elif compiles and case.op != "domain_transform":  # whose 12 passes of hundreds of lines it would unroll
        yield "compile", lambda *tensors: call(eager, case, *tensors), torch.channels_last, device


def _memory(call_: Callable[[], list[torch.Tensor]], clock: Clock) -> dict[str, int | None]:
    if not clock.on_host(call_):
        extra = memory.allocated_cuda(call_)
        return {"extra_bytes": extra, "resident_bytes": None, "launches": memory.launches(call_)}
    return {"extra_bytes": memory.allocated_cpu(call_), "resident_bytes": memory.resident(call_), "launches": None}


def measure(case: Case, direction: str, session: Session) -> list[dict[str, Any]]:
    """Checks all contestants against float64, then measures their memory, then times them in turns.

    Args:
        case: The case.
        direction: One of the case's.
        session: Of the run; a contestant that fails, or whose result is wrong, is noted in its `left_out`, and the others go on.

    Returns:
        A result (see results.COLUMNS) for every contestant that could be measured; none without an eager one, for there is nothing to compare with.
    """
    device = session.clock.device
    try:
        return _measure(case, direction, session, device)
    except RuntimeError as error:  # the reference in float64 takes the most memory of all
        session.leave_out("ours", error, case, direction)
        return []


def _measure(case: Case, direction: str, session: Session, device: torch.device) -> list[dict[str, Any]]:
    sets = [make_inputs(case, session.dtype, seed) for seed in range(CUDA_INPUT_SETS if device.type == "cuda" else 1)]
    expected = truth(case, direction, sets[0].convert(session.dtype, torch.channels_last, device))
    calls: dict[str, list[Callable[[], list[torch.Tensor]]]] = {}
    errors: dict[str, float] = {}
    least = None
    for name, function, layout, where in contestants(case, device, session.compiles):
        try:
            own = [inputs.convert(session.dtype, layout, where) for inputs in sets]
            if name == "compile":
                function = torch.compile(function, dynamic=False)
            calls_of_one, results = _first_calls(function, direction, own)
            if where.type != device.type:
                calls_of_one = [OnHost(call_) for call_ in calls_of_one]
                results = [result.to(device) for result in results]
            errors[name] = check(case, direction, name, results, expected, tolerance_of(case, session.dtype))
        except Exception as error:  # whatever befalls one, the others are measured
            session.leave_out(name, error, case, direction)
            continue
        calls[name] = calls_of_one
        if name == "ours":
            least = least_work(case, direction, own[0], results)
    if case.op == "domain_transform" and direction == FORWARD and device.type == "cpu":
        rival = opencv.find() if session.dtype == torch.float32 else None
        if rival is None:
            reason = "cv2.ximgproc must be installed, and the maps be float32; install the extra `bench`"
            session.leave_out("opencv", reason, case, direction)
        else:
            filtered, wanted = opencv.contestant(rival, sets[0].maps[0], torch.get_num_threads())
            try:
                tolerance = tolerance_of(case, session.dtype)
                errors["opencv"] = check(case, direction, "opencv", filtered(), wanted, tolerance)
                calls["opencv"] = [filtered]
            except Disagreement as error:
                session.leave_out("opencv", error, case, direction)
    del expected
    measured, timings, least_seconds = _measure_and_time(calls, least, case, direction, session)
    moved = ideal_bytes(case, direction, session.dtype.itemsize)
    group = []
    for name, timing in timings.items():
        rate = moved / timing.median
        group.append(
            {"op": case.op, "case": case.name, "direction": direction, "contestant": name}
            | {"median_ms": timing.median * 1e3, "p20_ms": timing.p20 * 1e3, "p80_ms": timing.p80 * 1e3}
            | {"called_ms": None if timing.called is None else timing.called * 1e3}
            | {"least_ms": least_seconds * 1e3 if name == "ours" and least_seconds is not None else None}
            | {"repeats": timing.repeats, **measured[name], "ideal_bytes": moved}
            | {"gb_per_s": rate / 1e9, "share_of_copy": rate / session.copy_bandwidth, "error": errors[name]}
        )
    compared = with_ratios(group)
    if group and not compared:
        session.leave_out("ours", "no eager layout could be measured, so there is no ratio", case, direction)
    return compared


def _measure_and_time(
    calls: dict[str, list[Callable[[], list[torch.Tensor]]]],
    least: Callable[[], list[torch.Tensor]] | None,
    case: Case,
    direction: str,
    session: Session,
) -> tuple[dict[str, dict[str, int | None]], dict[str, Timing], float | None]:
    """Measures the memory of contestants that agree, then their times and that of the least work; a memory that suffices for one of them may not
    suffice for another."""
    try:
        for of_one in calls.values():  # what is allocated once, in the first calls, shall count for none
            for n in range(WARM_UP):
                of_one[n % len(of_one)]()
        measured = {name: _memory(of_one[0], session.clock) for name, of_one in calls.items()}
        timed = calls | ({} if least is None else {"least": [least]})
        timings = take_turns(session.clock, timed, session.repeats, session.budget) if calls else {}
        floor = timings.pop("least", None)
        return measured, timings, None if floor is None else floor.median
    except RuntimeError as error:
        for name in calls:
            session.leave_out(name, error, case, direction)
        return {}, {}, None


def _first_calls(
    function: Function, direction: str, sets: list[Inputs]
) -> tuple[list[Callable[[], list[torch.Tensor]]], list[torch.Tensor]]:
    """Prepares a contestant's call over every set of inputs; returns them, and the detached results of the first."""
    calls = [prepare(function, direction, inputs) for inputs in sets]
    return calls, [result.detach() for result in calls[0]()]
