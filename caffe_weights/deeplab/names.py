"""Layers under the names that DeepLab's own releases give them."""

import re
from collections.abc import Mapping
from dataclasses import replace

from caffe_weights.deeplab.spec import SHARED_COPY
from caffe_weights.files.model import Model, duplicate

# DeepLab's scripts put the experiment's name behind the classifier's: fc8_voc12, fc8_pascal, fc8_${EXP}.
_CLASSIFIER = re.compile(r"fc8_(?!res\d+$).+")


def classifiers(model: Model) -> list[str]:
    """Lists the layers with blobs that may be the classifier under DeepLab's own names; copies for other scales are left out."""
    return [n for n in model.with_blobs() if _CLASSIFIER.fullmatch(n) and not SHARED_COPY.fullmatch(n)]


def renamed(model: Model, rename: Mapping[str, str]) -> Model:
    """Gives layers other names; their copies for other scales follow.

    Args:
        model: any.
        rename: old name to new name.

    Returns:
        The model with the same blobs.

    Raises:
        ValueError: an old name is no layer's, or a new name is another layer's.
    """
    if unknown := [old for old in rename if old not in model]:
        have = " ".join(model.with_blobs()) or "none"
        raise ValueError(f"{model.path}: rename must name layers of the file; got {unknown[0]!r}; choose from {have}")

    def new(name: str) -> str:
        copy = SHARED_COPY.fullmatch(name)
        if name in rename or not copy or copy["owner"] not in rename:
            return rename.get(name, name)
        return rename[copy["owner"]] + name[copy.end("owner") :]

    layers = tuple(replace(layer, name=new(layer.name)) for layer in model.layers)
    if problem := duplicate(list(layers)):
        raise ValueError(f"{model.path}: {problem} after renaming; choose another name")
    return replace(model, layers=layers)
