"""The softmax loss and the losses of the network, by hand and against Caffe."""

import math

import pytest
import torch
from conftest import assert_close, golden

from repro.loss import losses, shrink_labels, softmax_loss
from repro.models import Output
from repro.ops import interp

CAFFE = golden("softmax_loss.npz")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CAFFE["case_names"].tolist())
def test_equals_caffe(case, dtype, device):
    suffix = "" if dtype == torch.float32 else "_f64"
    x = torch.tensor(CAFFE[f"{case}/x"]).to(device=device, dtype=dtype).requires_grad_()
    label = torch.tensor(CAFFE[f"{case}/label"][:, 0]).to(device).to(torch.uint8)
    loss = softmax_loss(x, label)
    (loss * float(CAFFE[f"{case}/loss_weight"])).backward()
    assert_close(loss, CAFFE[f"{case}/loss{suffix}"], 1e-10 if suffix else 3 * 4.1e-07, "loss")
    assert_close(x.grad, CAFFE[f"{case}/dx{suffix}"], 1e-10 if suffix else 3 * 1.2e-07, "dx")


def test_by_hand():
    scores = torch.tensor([[[[0.0, 0.0, 9.0]], [[0.0, math.log(3), 0.0]]]])
    assert softmax_loss(scores, torch.tensor([[[0, 1, 255]]])).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2, rel=1e-6
    )


def test_each_scale_has_caffes_labels():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 97, 97))
    scores = [torch.randn(2, 3, side, side) for side in (13, 10, 7)]
    merged = torch.randn(2, 3, 13, 13)
    terms = losses(Output(merged, scores, None, None), labels, (1, 0.75, 0.5), extra_supervision=True)
    assert {name: pytest.approx(value.item()) for name, value in terms.items()} == {
        "loss": softmax_loss(merged, labels[:, ::8, ::8]).item(),
        "loss_res1": softmax_loss(scores[0], labels[:, ::8, ::8]).item(),
        "loss_res075": softmax_loss(interp(scores[1], (13, 13)), labels[:, ::8, ::8]).item(),
        "loss_res05": softmax_loss(scores[2], labels[:, ::16, ::16]).item(),
    }
    assert list(losses(Output(merged, scores, None, None), labels, (1, 0.75, 0.5), extra_supervision=False)) == ["loss"]


def test_messages():
    with pytest.raises(
        ValueError, match=r"shrink_labels: height - 1 and width - 1 must be multiples of 8; got \(98, 97\)"
    ):
        shrink_labels(torch.zeros(1, 98, 97), 8)
    with pytest.raises(ValueError, match=r"softmax_loss: labels must be \(N, H, W\) of the scores"):
        softmax_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 4))
