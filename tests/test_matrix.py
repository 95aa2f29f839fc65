"""The runs of the tests under other processors' settings."""

import subprocess

import matrix
import pytest
import torch


@pytest.fixture
def runs(monkeypatch):
    """Collects the environments and commands of the runs, of which "avx2" fails."""
    started = []

    def run(command, env, cwd):
        started.append((env, command))
        return subprocess.CompletedProcess(command, int(env["ATEN_CPU_CAPABILITY"] == "avx2"))

    monkeypatch.setattr(subprocess, "run", run)
    return started


@pytest.mark.parametrize(("own", "expected"), [("AVX512", 3), ("AVX2", 2), ("DEFAULT", 1), ("SVE256", 1)])
def test_every_setting_that_the_processor_has(runs, monkeypatch, capsys, own, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: own)
    assert matrix.main([]) == (expected > 1)
    assert [env["ATEN_CPU_CAPABILITY"] for env, _ in runs] == list(matrix.SETTINGS)[:expected]
    assert {env["REPRO_TEST_THREADS"] for env, _ in runs} == set(list("421")[:expected])
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0] == "matrix: default: passed"
    assert last[1] == (
        "matrix: avx2: failed, exit code 1" if expected > 1 else f"matrix: avx2: left out: the processor has {own}"
    )


def test_chosen_settings_and_arguments(runs, capsys):
    assert matrix.main(["default", "--", "-k", "conv"]) == 0
    assert [command[1:3] + command[-2:] for _, command in runs] == [["-m", "pytest", "-k", "conv"]]
    assert matrix.main(["sse"]) == 2
    assert capsys.readouterr().err == "matrix: a setting must be one of default, avx2, avx512; got 'sse'; choose one\n"
