"""The losses of the network: which scores meet which labels."""

import pytest
import torch

from repro.models import Output
from repro.ops import interp, reference
from repro.solver.loss import losses


def test_each_scale_has_caffes_labels():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 97, 97))
    scores = [torch.randn(2, 3, side, side) for side in (13, 10, 7)]
    merged = reference.merge_scores(scores, None, "average")[0]
    terms = losses(Output(scores, None, "average"), labels, (1, 0.75, 0.5), extra_supervision=True)
    assert {name: pytest.approx(value.item()) for name, value in terms.items()} == {
        "loss": reference.segmentation_loss(merged, labels, 8).item(),
        "loss_res1": reference.segmentation_loss(scores[0], labels, 8).item(),
        "loss_res075": reference.segmentation_loss(interp(scores[1], (13, 13)), labels, 8).item(),
        "loss_res05": reference.segmentation_loss(scores[2], labels, 16).item(),
    }
    assert list(losses(Output(scores, None, "average"), labels, (1, 0.75, 0.5), extra_supervision=False)) == ["loss"]
