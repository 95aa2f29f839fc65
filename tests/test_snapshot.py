"""Snapshots: what is written is read, and nothing else is believed."""

import dataclasses
import io
import math
import os
import re

import pytest
import torch

from repro.solver.snapshot import _MAGIC, Snapshot, _head, identity_of, read_snapshot, write_snapshot

SHAPES = {"fc8.weight": torch.Size([2, 3, 1, 1]), "fc8.bias": torch.Size([2])}


def snapshot(**changes):
    values = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    history = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    curve = torch.tensor([0.5, 1 / 3], dtype=torch.float64)
    return dataclasses.replace(Snapshot("me", 2, values, history, curve, 12.5, [{"threads": "2"}]), **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "snapshot.pt"


def refused(path, reason, identity="me", shapes=SHAPES):
    with pytest.raises(ValueError, match=reason) as caught:
        read_snapshot(path, identity, shapes)
    text = str(caught.value)
    assert text.startswith(f"{path}: must be a whole snapshot{' of this very run' if identity else ''}; got ")
    assert text.endswith("; delete it to start the row again, or choose another --out")
    assert "\n" not in text


def test_round_trip(path):
    one = snapshot()
    write_snapshot(path, one)
    for read in (read_snapshot(path), read_snapshot(path, "me", SHAPES)):
        for what in ("parameters", "history"):
            assert all(torch.equal(getattr(one, what)[name], getattr(read, what)[name]) for name in SHAPES)
        assert torch.equal(one.curve, read.curve)
        assert (read.identity, read.iteration, read.seconds, read.sittings) == ("me", 2, 12.5, [{"threads": "2"}])
    assert [file.name for file in path.parent.iterdir()] == ["snapshot.pt"]


def test_a_missing_one_is_named(path):
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(str(path))}: must be a snapshot; got no such file; "):
        read_snapshot(path)


def test_every_flipped_bit_is_found(path):
    write_snapshot(path, snapshot())
    good = path.read_bytes()
    for place in (*range(0, 120), *range(120, len(good), 37), len(good) - 1):
        for bit in (0, 3, 7):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            refused(path, "checksum differs|file of another kind")


@pytest.mark.parametrize(
    "harm",
    [
        lambda good: b"",
        lambda good: b"no snapshot at all",
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: good + b"x",
        lambda good: good[: len(good) // 2] + bytes(64) + good[len(good) // 2 + 64 :],
        lambda good: good[len(_MAGIC) :],
    ],
)
def test_cut_zeroed_and_foreign_files_are_refused(path, harm):
    write_snapshot(path, snapshot())
    path.write_bytes(harm(path.read_bytes()))
    refused(path, "checksum differs|file of another kind")


def test_special_files_do_not_hang(path):
    path.parent.mkdir()
    os.mkfifo(path)
    refused(path, "got no regular file")


BAD = {
    "another run": ({"identity": "you"}, "another run's snapshot"),
    "iteration no integer": ({"iteration": 2.0}, "iteration 2.0"),
    "iteration below 0": ({"iteration": -1}, "iteration -1"),
    "curve too short": ({"iteration": 3}, "a loss curve that does not fit iteration 3"),
    "curve a list": ({"curve": [0.5, 1.0]}, "a loss curve"),
    "curve float32": ({"curve": torch.zeros(2)}, "a loss curve"),
    "curve with NaN": ({"curve": torch.tensor([0.5, math.nan], dtype=torch.float64)}, "curve with NaN"),
    "seconds infinite": ({"seconds": math.inf}, "seconds inf"),
    "seconds a string": ({"seconds": "12"}, "seconds '12'"),
    "no list of sittings": ({"sittings": {"threads": "2"}}, "no list of sittings"),
    "parameters a list": ({"parameters": [torch.zeros(2)]}, "no tensors in parameters"),
    "history of numbers": ({"history": {"fc8.weight": 1.0}}, "no tensors in history"),
    "a layer more": (
        {"parameters": {**snapshot().parameters, "fc9.bias": torch.zeros(1)}},
        "parameters of another network: fc9.bias",
    ),
    "a layer less": ({"history": {"fc8.bias": torch.zeros(2)}}, "history of another network: fc8.weight"),
    "another shape": (
        {"parameters": {**snapshot().parameters, "fc8.bias": torch.zeros(3)}},
        "parameters of another network: fc8.bias",
    ),
    "float64": (
        {"history": {**snapshot().history, "fc8.bias": torch.zeros(2).double()}},
        "history that are not float32: fc8.bias",
    ),
    "NaN": (
        {"parameters": {**snapshot().parameters, "fc8.bias": torch.full((2,), math.nan)}},
        "parameters with NaN or infinite",
    ),
    "infinity": (
        {"history": {**snapshot().history, "fc8.bias": torch.full((2,), math.inf)}},
        "history with NaN or infinite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_whole_files_of_wrong_content_are_refused(path, case):
    changes, reason = BAD[case]
    write_snapshot(path, snapshot(**changes))
    refused(path, reason)


@pytest.mark.parametrize("state", [[], {"identity": "me"}, dataclasses.asdict(snapshot()) | {"more": 1}])
def test_other_tables_are_refused(path, state):
    content = io.BytesIO()
    torch.save(state, content)
    path.parent.mkdir()
    path.write_bytes(_head(content.getvalue()) + content.getvalue())
    refused(path, "no table of identity, iteration")


def test_no_code_runs(path, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_snapshot(path, snapshot(sittings=[Evil()]))
    refused(path, "Weights only load failed")
    assert not (tmp_path / "ran").exists()


def test_identity_is_of_what_numbers_depend_on():
    made = {"protocol_sha256": "a", "settings_sha256": "b", "seed": 1, "precision": "fp32"}
    assert identity_of(made) == identity_of(made | {"protocol_sha256": "c", "backend": "cpu kernels"})
    assert (
        len(
            {identity_of(made | change) for change in ({}, {"seed": 2}, {"precision": "bf16"}, {"settings_sha256": ""})}
        )
        == 4
    )
