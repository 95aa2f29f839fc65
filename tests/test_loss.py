"""The losses of the network: which scores meet which labels."""

import pytest
import torch

from repro.models import Output
from repro.models.edge import DomainTransform
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


def test_filtered_scores_meet_the_labels_at_full_size_within_each_image():
    torch.manual_seed(0)
    labels, edge = torch.randint(0, 3, (2, 97, 97)), torch.rand(2, 1, 97, 97)
    scores = [torch.randn(2, 3, side, side) for side in (13, 7)]
    valid_size = torch.tensor([[97, 97], [60, 41]])
    merged = interp(reference.merge_scores(scores, None, "max")[0], (97, 97))
    filtered = reference.domain_transform(merged, edge, 2, 50, 5, 0.0, valid_size)
    output = Output(scores, None, "max", edge, DomainTransform(2, 50, 5, 0.0))
    terms = losses(output, labels, (1, 0.5), extra_supervision=True, valid_size=valid_size)
    assert {name: pytest.approx(value.item()) for name, value in terms.items()} == {
        "loss": reference.segmentation_loss(filtered, labels, 1).item(),
        "loss_res1": reference.segmentation_loss(scores[0], labels, 8).item(),
        "loss_res05": reference.segmentation_loss(scores[1], labels, 16).item(),
    }
    whole = losses(output, labels, (1, 0.5), extra_supervision=False)
    assert whole["loss"].item() != pytest.approx(terms["loss"].item())
