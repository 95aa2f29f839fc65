"""What the operators refuse rather than answer wrongly: forward mode, torch.func and vmap; and gradients of a part of the results."""

import pytest
import torch
from conftest import assert_close
from torch.autograd import forward_ad

from repro import ops
from repro.ops import reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # forward mode's own; another category since torch 2.14
LABELS = torch.zeros(2, 4, 5, dtype=torch.uint8)
IMAGE = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
FILTER = (2, 5.0, 2.0, 0.0)
CALLS = {
    "interp": lambda x: ops.interp(x, (7, 7)).sum(),
    "interp_backward": lambda x: torch.ops.repro.interp_backward(x, (3, 3)).sum(),
    "merge_scores": lambda x: ops.merge_scores([x.detach(), x], mode="max")[0].sum(),
    "merge_scores with logits": lambda x: ops.merge_scores([x.detach()] * 2, x[:, :2])[0].sum(),
    "merge_scores_backward": lambda x: torch.ops.repro.merge_scores_backward(x, None, [x.detach()], None, "max")[0][0].sum(),
    "segmentation_loss": lambda x: ops.segmentation_loss(x, LABELS, 1),
    "domain_transform": lambda x: ops.domain_transform(x, x[:, :1].detach(), *FILTER).sum(),
    "domain_transform of the edges": lambda x: ops.domain_transform(x.detach(), x[:, :1], *FILTER).sum(),
    "domain_transform_backward": lambda x: torch.ops.repro.domain_transform_backward(x, x.detach(), x[:, :1].detach(), *FILTER, None)[0].sum(),
}  # fmt: skip
DIFFERENTIABLE = pytest.mark.parametrize("name", CALLS)


def refusal(name, words):
    return pytest.raises(RuntimeError, match=rf"^{name.split()[0]}: {words}")


@DIFFERENTIABLE
def test_forward_mode_is_refused(name):
    x = torch.randn(2, 3, 4, 5)
    words = r"must be differentiated in reverse mode; got a tangent of forward mode; use repro\.ops\.reference"
    with forward_ad.dual_level(), refusal(name, words):
        CALLS[name](forward_ad.make_dual(x, torch.ones_like(x)))
    with forward_ad.dual_level():
        CALLS[name](x)  # which has no tangent


@DIFFERENTIABLE
def test_torch_func_is_refused(name):
    x = torch.randn(2, 3, 4, 5)
    with refusal(name, "must be differentiated in reverse mode; got a tangent"):
        torch.func.jvp(CALLS[name], (x,), (torch.ones_like(x),))
    with refusal(
        name, r"must be differentiated by torch\.autograd; got a tensor of torch\.func; use torch\.autograd\.grad"
    ):
        torch.func.grad(CALLS[name])(x)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *CALLS.items(),
        ("predict", lambda x: ops.predict([x], mode="average")[0]),
        ("dense_crf", lambda x: ops.dense_crf(x, IMAGE, 1, 3, 3, 5, 50, 10)),
        ("confusion_matrix", lambda x: ops.confusion_matrix(x.argmax(1), LABELS, 3)[0]),
    ],
)
def test_vmap_is_refused(name, call):
    with refusal(name, "must not run under vmap; got a batched tensor; put its dimension into N"):
        torch.func.vmap(call)(torch.randn(6, 2, 3, 4, 5))


@pytest.mark.parametrize("size", [(4, 5), (2, 3)], ids=str)
def test_gradients_of_one_of_the_merges_two_results(size, device):
    scores = [torch.randn(2, 3, *hw, dtype=torch.float64, device=device, requires_grad=True) for hw in ((4, 5), (3, 3))]
    logits = torch.randn(2, 2, *size, dtype=torch.float64, device=device, requires_grad=True)
    for part in (0, 1):
        upstream = torch.randn(2, (3, 2)[part], 4, 5, dtype=torch.float64, device=device)
        found = []
        for module in (ops, reference):
            result = module.merge_scores(scores, logits)[part]
            found.append(torch.autograd.grad(result, [*scores, logits], upstream, materialize_grads=True))
        for actual, expected in zip(*found, strict=True):
            assert_close(actual, expected, 1e-12)


def test_the_losss_other_results_have_no_gradient(device):
    scores = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    loss, dscores, valid = torch.ops.repro.segmentation_loss(scores, LABELS.to(device), 1, 255, True)
    assert loss.requires_grad
    assert not dscores.requires_grad
    assert valid.dtype == torch.int64
    assert valid.item() == LABELS.numel()
    assert torch.equal(torch.autograd.grad(loss, scores)[0], dscores)
    assert not torch.ops.repro.segmentation_loss(scores, LABELS.to(device), 1, 255, False)[0].requires_grad
