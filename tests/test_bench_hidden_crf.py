"""The test of images with and without the CRF: both are run, timed and compared."""

import re

import pytest

from repro.bench import hidden_crf
from repro.bench.hidden_crf import main

THIN = ["table3", "attention2", "--set=model.width=0.03125", "--device=cpu", "--images=1", "--repeats=1", "--threads=1"]


def test_both_are_timed_and_compared(capsys, monkeypatch):
    tested = []
    evaluate = hidden_crf.evaluate

    def noted(network, items, settings, compute):
        counts = evaluate(network, items, settings, compute)
        tested.append((len(items), settings.get("crf"), counts.before_crf is not None, int(counts.confusion.sum())))
        return counts

    monkeypatch.setattr(hidden_crf, "evaluate", noted)
    monkeypatch.setattr(hidden_crf, "VOC_IMAGE", (60, 80))
    monkeypatch.setattr(hidden_crf, "WITHIN", 1000.0)
    assert main(THIN) == 0
    assert re.fullmatch(
        r"table3/attention2: [\d.]+ s an image, with the CRF [\d.]+; ratio [\d.]+ \(must be at most 1000.0\); the CRF alone takes [\d.]+ s of one core, .*\n",
        capsys.readouterr().out,
    )
    crf = {"max_iter": 10, "pos_w": 3, "pos_xy_std": 3, "bi_w": 5, "bi_xy_std": 50, "bi_rgb_std": 10}
    assert [one[:3] for one in tested] == [(1, None, False), (1, crf, True)] * 2
    assert 0 < tested[0][3] == tested[1][3] <= 60 * 80  # some may be ignored
    monkeypatch.setattr(hidden_crf, "WITHIN", 0.0)
    assert main(THIN) == 1


@pytest.mark.parametrize("wrong", ["--images=0", "--repeats=0", "--workers=0", "--threads=0"])
def test_wrong_numbers_are_refused(wrong, capsys):
    assert main([*THIN, wrong]) == 2
    assert "--images, --repeats, --workers, --threads: must be at least 1; got" in capsys.readouterr().err
