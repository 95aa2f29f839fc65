"""The interpreter beside a row's own network: the same losses, then both are timed."""

import re

import pytest

from repro.bench import interpreter
from repro.bench.interpreter import main

THIN = [
    "table1",
    "attention3-extra",
    "--set=model.width=0.03125",
    "--set=transform.crop_size=65",
    "--device=cpu",
    "--repeats=2",
    "--threads=1",
]


def test_both_are_timed_and_compared(capsys, monkeypatch):
    monkeypatch.setattr(interpreter, "WITHIN", 1000.0)
    assert main(THIN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, direction in zip(lines, ("forward", "forward+backward"), strict=True):
        assert re.fullmatch(
            rf"table1/attention3-extra {re.escape(direction)}: row [\d.]+ ms \(.*\), interpreter [\d.]+ ms \(.*\); "
            r"2 rounds, ratio [\d.]+ \([\d.]+ \.\. [\d.]+; must be at most 1000.0\)",
            line,
        )
    monkeypatch.setattr(interpreter, "WITHIN", 0.0)
    assert main(THIN) == 1


def test_nothing_is_timed_where_the_losses_differ(capsys, monkeypatch):
    monkeypatch.setattr(interpreter, "losses", lambda *given: {"loss": 1.0})
    assert main(THIN) == 2
    assert re.search(
        r"attention3-extra: both must give the same losses; got .*; nothing was timed", capsys.readouterr().err
    )


@pytest.mark.parametrize("wrong", ["--batch=0", "--repeats=1", "--threads=0"])
def test_wrong_numbers_are_refused(wrong, capsys):
    assert main([*THIN, wrong]) == 2
    assert "--batch, --repeats, --threads: must be at least 1, 2 and 1; got" in capsys.readouterr().err
