"""OpenMP's threads sleep while they wait, on a busy machine alone."""

import os

import pytest

from repro.waiting import wait_passively_where_busy


@pytest.mark.parametrize(
    ("load", "given", "expected"),
    [
        (0.0, {}, {}),
        (2.4, {}, {}),
        (2.6, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (9.0, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_only_a_busy_machine_and_never_against_the_user(load, given, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    wait_passively_where_busy(given)
    assert given == expected


def test_a_system_without_a_load_average(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    environment = {}
    wait_passively_where_busy(environment)
    assert environment == {}
