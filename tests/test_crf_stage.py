"""The CRF as a stage of the test: against the same steps by hand, before and after it in one pass, beside the network, and in everything that shows a row."""

import re
import threading

import numpy as np
import pytest
import torch
from test_evaluate import MEAN, Known, items  # noqa: F401  a fixture
from tiny import CRF, CRF_KEYS, write_protocol
from torch.nn import functional as F

from repro import ops
from repro.data.stream import read_test_item
from repro.data.transforms import read_label
from repro.device import Compute
from repro.evaluate import postprocess
from repro.evaluate.labels import evaluate, label_maps
from repro.evaluate.postprocess import final_labels
from repro.models import Output
from repro.models.edge import DomainTransform
from repro.protocol import load_protocol
from repro.records.own import keep_protocol, kept_path
from repro.run.plan import Plan

CPU = Compute(torch.device("cpu"))


def settings_for(crf=CRF_KEYS, batch_size=2):
    return {
        "data": {"class_names": ["a", "b", "c"], "ignore_label": 255},
        "transform": {"mean_bgr": MEAN},
        "test": {"crop_size": 17, "batch_size": batch_size},
    } | ({"crf": crf} if crf else {})


def crf_by_hand(network, item):
    """Goes from an image to the labels before and after the CRF, step by step."""
    data, _, (height, width) = read_test_item(item, MEAN, 17)
    with torch.no_grad():
        (scores,) = network.eval()(data).scores
    large = ops.interp(scores, data.shape[2:])[:, :, :height, :width]
    # CRF_KEYS are in the operator's order.
    refined = ops.dense_crf(F.log_softmax(large, 1), data[:, :, :height, :width], *CRF_KEYS.values())
    return large.argmax(1)[0], refined.argmax(1)[0]


def test_labels_are_those_of_the_chain_by_hand(items):  # noqa: F811
    found = [one for batch in label_maps(Known(), items, settings_for(), CPU) for one in batch]
    assert [one.image.item for one in found] == items
    changed = 0
    for item, one in zip(items, found, strict=True):
        before, after = crf_by_hand(Known(), item)
        assert torch.equal(one.labels.long(), after)
        assert torch.equal(one.before_crf.long(), before)
        assert one.labels.dtype == one.before_crf.dtype == torch.uint8
        changed += int((before != after).sum())
    assert changed > 20


def test_a_domain_transform_stands_before_the_crf():
    """Scores x 8, the filter within each image's size, log softmax, CRF on the image alone, argmax; a padded batch of two sizes."""
    torch.manual_seed(2)
    sizes, transform, data = [(33, 40), (20, 41)], DomainTransform(2, 10, 1, 0.0), torch.randn(2, 3, 41, 41) * 60
    output = Output([torch.randn(2, 3, 6, 6)], None, "average", torch.rand(2, 1, 41, 41), transform)
    found = final_labels(output, data, sizes, CRF_KEYS)
    large = ops.interp(output.scores[0], (41, 41))
    for i, (height, width) in enumerate(sizes):
        own = (slice(i, i + 1), ..., slice(height), slice(width))
        valid = torch.tensor([sizes[i]])
        filtered = ops.domain_transform(large[i : i + 1], output.edge[i : i + 1], *transform, valid)[
            ..., :height, :width
        ]
        refined = ops.dense_crf(F.log_softmax(filtered, 1), data[own], *CRF_KEYS.values())
        assert torch.equal(found[i][0].long(), refined.argmax(1)[0])
        assert torch.equal(found[i][1].long(), filtered.argmax(1)[0])
        assert (found[i][0] != found[i][1]).any()
        assert (filtered.argmax(1) != large[own].argmax(1)).any()


def test_one_pass_counts_before_and_after(items):  # noqa: F811
    network, progress = Known(), []
    counts = evaluate(network, items, settings_for(), CPU, progress.append)
    plain = Known()
    assert np.array_equal(counts.before_crf, evaluate(plain, items, settings_for(None), CPU).confusion)
    assert not np.array_equal(counts.before_crf, counts.confusion)
    assert len(network.seen) == len(plain.seen)
    assert progress == [2, 1, 1, 1]
    by_hand = np.zeros((3, 3), np.int64)
    for item in items:
        label, after = read_label(item.label), crf_by_hand(Known(), item)[1].numpy()
        np.add.at(by_hand, (label[label != 255], after[label != 255]), 1)
    assert np.array_equal(counts.confusion, by_hand)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(items, workers):  # noqa: F811
    before = threading.active_count()
    here, beside = (
        evaluate(Known(), items * 3, settings_for(batch_size=size), Compute(torch.device("cpu"), workers=number))
        for size, number in ((2, 0), (1, workers))
    )
    assert np.array_equal(here.confusion, beside.confusion)
    assert np.array_equal(here.before_crf, beside.before_crf)
    one_by_one, ahead = (
        [one for batch in label_maps(Known(), items * 2, settings_for(batch_size=1), compute) for one in batch]
        for compute in (CPU, Compute(torch.device("cpu"), workers=workers))
    )
    assert [one.image.item for one in ahead] == items * 2  # in the list's order
    for first, second in zip(one_by_one, ahead, strict=True):
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.before_crf, second.before_crf)
    assert threading.active_count() == before


def test_the_crf_runs_beside_the_network_and_never_far_behind(items, monkeypatch):  # noqa: F811
    real, waiting, started, most = postprocess.ops.dense_crf, threading.Event(), [], []

    def dense_crf(*arguments):
        started.append(threading.current_thread())
        assert waiting.wait(60)
        return real(*arguments)

    class Watched(Known):
        def forward(self, data):
            most.append(len(started))
            if len(most) == 3:  # the first CRF has not ended: the network is ahead of it
                waiting.set()
            return super().forward(data)

    monkeypatch.setattr(postprocess.ops, "dense_crf", dense_crf)
    network, before = Watched(), threading.active_count()
    batches = label_maps(network, items * 2, settings_for(batch_size=1), Compute(torch.device("cpu"), workers=2))
    next(batches)
    assert len(network.seen) == 4  # two workers, two batches each
    assert threading.main_thread() not in started
    next(batches)
    assert len(network.seen) == 5
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_what_progress_raises_ends_the_evaluation(items, workers):  # noqa: F811
    def progress(images):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Known(), items, settings_for(), Compute(torch.device("cpu"), workers=workers), progress)
    assert threading.active_count() == before


# The protocol.


def test_a_section_that_some_rows_have(tmp_path):
    own = "".join(f"crf.{key} = {value}\n" for key, value in CRF_KEYS.items())
    path = write_protocol(tmp_path, ('id = "max2"\n', f'id = "max2"\n{own}'))
    rows = {row.id: row.settings for row in load_protocol(path, ["crf.bi_w=6"]).rows}
    assert rows["max2"]["crf"] == CRF_KEYS | {"bi_w": 6}
    assert "crf" not in rows["baseline"]  # an override of one key changes the rows that have the section
    every = [f"crf.{key}={value}" for key, value in CRF_KEYS.items()]
    assert all(row.settings["crf"] == CRF_KEYS for row in load_protocol(path, every).rows)
    assert Plan([path], [], [1], ["crf.bi_w=6"]).jobs
    with pytest.raises(
        ValueError, match=r"^--set: crf\.bi_w must change a row that has such a key; got none among the "
    ):
        Plan([path], ["baseline"], [1], ["crf.bi_w=6"])
    keep_protocol(tmp_path, load_protocol(path))
    again = load_protocol(str(kept_path(tmp_path, "tiny")))
    assert [row.settings for row in again.rows] == [row.settings for row in load_protocol(path).rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bi_w = 4\n", ""), "tiny.toml, row 'baseline': every key must be given; got none for crf.bi_w; add to "),
        (
            ("bi_w = 4\n", "bi_ww = 4\n"),
            "tiny.toml: a key of crf must be known; got crf.bi_ww; did you mean 'crf.bi_w'",
        ),
        (("max_iter = 3\n", "max_iter = 3.5\n"), "tiny.toml: crf.max_iter must be an integer; got 3.5; correct it"),
        (("bi_xy_std = 20", "bi_xy_std = 0"), "tiny.toml, row 'baseline': crf.bi_xy_std must be within 0.1 and 10000"),
        (("pos_w = 3", "pos_w = -1"), "tiny.toml, row 'baseline': crf.pos_w must be within 0 and 10000.0; got -1; "),
    ],
)
def test_what_is_no_crf(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_protocol(write_protocol(tmp_path, (CRF[0], CRF[1].replace(*change))))
    with pytest.raises(ValueError, match=r"^--set: a key of crf must be known; got crf\.bi_x; did you mean "):
        load_protocol(write_protocol(tmp_path), ["crf.bi_x=3"])
