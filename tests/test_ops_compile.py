"""The operators under torch.compile with its default backend, as a training step and as a test step use them."""

import pytest
import torch
from conftest import assert_close

from repro.ops import (
    confusion_matrix,
    dense_crf,
    domain_transform,
    interp,
    merge_scores,
    predict,
    segmentation_loss,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.jit"),  # inductor's own
]


def test_inductor_compiles_every_op_without_a_graph_break(device, tmp_path, monkeypatch):
    # Its cache knows the graph, not what the operators were when the graph was compiled.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    scores = [torch.randn(2, 7, *hw, device=device, requires_grad=True) for hw in ((9, 9), (7, 6), (5, 5))]
    logits = torch.randn(2, 3, 9, 9, device=device, requires_grad=True)
    labels = torch.randint(0, 7, (2, 65, 65), dtype=torch.uint8, device=device)
    image = torch.randint(0, 256, (2, 3, 17, 17), dtype=torch.uint8, device=device)

    def train(scores, logits):
        merged, weights = merge_scores([score * 1.5 for score in scores], logits.relu())
        merged = domain_transform(merged * 2, logits[:, :1].relu(), 2, 5.0, 2.0, 0.0)
        loss = segmentation_loss(merged, labels, 8) + segmentation_loss(interp(scores[1], (5, 5)), labels, 16)
        return loss + weights.square().mean()

    def test(scores, logits):
        predicted, probability = predict([score * 2 for score in scores], logits, size=(65, 65), probability=True)
        labelled = dense_crf(interp(scores[0], (17, 17)) * 2, image, 2, 3, 3, 5, 50, 10).argmax(dim=1)
        return *confusion_matrix(predicted, labels, 7), probability + 1, labelled

    losses = [step(scores, logits) for step in (train, torch.compile(train, fullgraph=True))]
    assert_close(losses[1], losses[0], 1e-6)
    expected, compiled = (torch.autograd.grad(loss, [*scores, logits]) for loss in losses)
    for actual, eager in zip(compiled, expected, strict=True):
        assert_close(actual, eager, 1e-6)
    for actual, eager in zip(torch.compile(test, fullgraph=True)(scores, logits), test(scores, logits), strict=True):
        assert torch.equal(actual, eager)
