"""The true VGG-16's first four convolutions, run through our layers, reproduce the printed activations of a reference image."""

import numpy as np
import pytest
import torch
from conftest import assert_close
from torch.nn import functional as F

from repro.models import LargeFOV


@pytest.mark.data
def test_first_convolutions_reproduce_the_reference_activations(data_root):
    folder = data_root / "vgg16_partial"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}: conv1_1 to conv2_2 of VGG-16 with reference activations")
    weights = np.load(folder / "vgg16_caffe_conv1_conv2.npz")
    reference = np.load(folder / "persian_cat_reference.npz")
    net = LargeFOV(num_classes=21).double()
    for name in ("conv1_1", "conv1_2", "conv2_1", "conv2_2"):
        layer = getattr(net, name)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weights[f"{name}_weight"]))
            layer.bias.copy_(torch.tensor(weights[f"{name}_bias_q11"]))
    x = torch.tensor(reference["input_hwc_bgr_meansub"]).permute(2, 0, 1)[None].double()
    # The reference is the ImageNet network, whose pools are 2x2; DeepLab's are 3x3. The biases are truncated to 2^-11 and the reference is
    # float32, hence the tolerance; ours is float64, so that no processor's rounding adds to it.
    corner = np.array([0, 1, 2, -3, -2, -1])
    for block in ("1", "2"):
        for layer in ("1", "2"):
            name = f"conv{block}_{layer}"
            x = F.relu(getattr(net, name)(x))
            compare(x, reference[f"corner6_{name}"], corner, name)
        x = F.max_pool2d(x, 2)
        compare(x, reference[f"corner6_pool{block}"], corner, f"pool{block}")


def compare(x, expected, corner, name):
    got = x[0].permute(1, 2, 0).detach().numpy()[np.ix_(corner, corner, corner)]
    assert_close(got, expected, 2e-5, name)
