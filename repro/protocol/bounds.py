"""What the numbers and names of a protocol may be: wide enough for every use, narrow enough that no machine is asked for the impossible."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from repro.files import check_name

_INT32 = 2**31 - 1  # Caffe's iteration counters
_FLOAT32 = 3.4e38

# Of every number, and of every number in a list: the least and the most that it may be.
BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "data": {"num_train": (0, _INT32), "num_val": (0, _INT32), "ignore_label": (0, 255)},
    "model": {
        "width": (1 / 1024, 4),
        "dropout_ratio": (0, 0.999),
        "filler_gain": (0, 1e6),
        "fc8_filler_std": (0, 1e6),
        "attention_layers": (1, 2),
        "attention_kernel": (1, 63),
        "attention_filters": (1, 65536),
        "attention_filler_std": (0, 1e6),
        "lr_mult": (0, 1e6),
        "fc8_lr_mult": (0, 1e6),
        "attention_lr_mult": (0, 1e6),
        "decay_mult": (0, 1e6),
        "msc_filters": (1, 65536),
        "msc_dropout_ratio": (0, 0.999),
        "msc_filler_std": (0, 1e6),
        "msc_score_filler_std": (0, 1e6),
        "msc_lr_mult": (0, 1e6),
        "dt_num_iter": (1, 16),
        "dt_spatial_sigma": (1e-6, 1e6),
        "dt_range_sigma": (1e-6, 1e6),
        "dt_min_weight": (0, 0.999),
        "edge_filler_std": (0, 1e6),
        "edge_lr_mult": (0, 1e6),
    },
    "transform": {"crop_size": (9, 8193), "mean_bgr": (-1e4, 1e4), "scale_factors": (0.01, 100)},
    "solver": {
        "base_lr": (0, _FLOAT32),
        "gamma": (0, 1e6),
        "stepsize": (1, _INT32),
        "power": (0, 1000),
        "max_iter": (0, _INT32),  # 0: the initial weights are evaluated as they are
        "batch_size": (1, 65536),
        "iter_size": (1, 65536),
        "momentum": (0, 1),
        "weight_decay": (0, 1e6),
        "clip_gradients": (0, _FLOAT32),
        "snapshot": (1, _INT32),
        "display": (1, _INT32),
    },
    "test": {"crop_size": (9, 8193), "batch_size": (1, 65536)},
    "synthetic": {"num_train": (1, 10**6), "num_val": (1, 10**6), "size": (1, 4096), "seed": (0, 2**32 - 1)},
    "fill": {"batches": (1, 1000)},
    "submission": {"num": (1, _INT32)},
    "crf": {
        "max_iter": (1, 1000),
        "pos_w": (0, 1e4),
        "pos_xy_std": (0.1, 1e4),
        "bi_w": (0, 1e4),
        "bi_xy_std": (0.1, 1e4),
        "bi_rgb_std": (0.1, 1e4),
    },
}
MOST_CLASSES = 256  # a label is a byte
# Paths below a data root.
PATHS = {"data": ("images", "labels"), "weights": ("file",)}


def check_bounds(settings: dict[str, dict[str, Any]], where: str) -> None:
    """Checks every number of a row's settings against BOUNDS, its paths and its class names.

    Raises:
        ValueError: One is outside; one line.
    """
    for section, keys in BOUNDS.items():
        for key, (least, most) in keys.items():
            value = settings.get(section, {}).get(key, [])
            for number in value if isinstance(value, list) else [value]:
                if not least <= number <= most:
                    raise ValueError(
                        f"{where}: {section}.{key} must be within {least} and {most}; got {str(number)[:40]}; correct it"
                    )
    for section, keys in PATHS.items():
        for key in keys:
            check_path(settings[section][key], f"{where}, {section}.{key}")
    names = settings["data"]["class_names"]
    if not 1 <= len(names) <= MOST_CLASSES or not all(name.strip() for name in names):
        raise ValueError(f"{where}: data.class_names must be 1 to {MOST_CLASSES} names; got {len(names)}; correct it")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: data.class_names must differ; got {twice!r} twice; rename one")
    if settings["model"]["attention_kernel"] % 2 == 0:
        raise ValueError(
            f"{where}: model.attention_kernel must be odd; got {settings['model']['attention_kernel']}; correct it"
        )
    if len(settings["transform"]["scale_factors"]) > 1000:
        raise ValueError(f"{where}: transform.scale_factors must be at most 1000; got more; leave some out")


def check_path(path: str, where: str) -> None:
    """Raises ValueError unless a path leads to something below the folder that it is put under: no root, no "..", no odd names."""
    parts = PurePosixPath(path).parts
    for part in parts or ("",):
        check_name(part, where)
