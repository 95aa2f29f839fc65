"""IoU near the boundaries: only the pixels of a narrow band around them count, so that one sees what sharpens them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def trimap_band(label: np.ndarray, width: float) -> np.ndarray:
    """Finds the band around the boundaries of a label.

    A pixel lies in the band where the nearest pixel that is labelled otherwise is at most `width` away, between the centres of both. What is ignored is
    labelled otherwise too: where VOC's annotators drew a border of ignored pixels between two classes, the band lies on both sides of that border; where
    classes meet without one, as in PASCAL-Person-Part, on both sides of the line between them. The image's own edge is no boundary.

    Args:
        label: (H, W) of any integer type.
        width: Pixels.

    Returns:
        (H, W) bool; whether ignored pixels lie in the band says nothing, for they count nowhere.

    Raises:
        ValueError: The width is not above 0.

    Paper: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015, section 5: mean IoU "for those pixels
        that are located within a narrow band (called trimap) of void labels"; after Kohli, Ladicky and Torr, IJCV 2009.
    """
    if not width > 0:
        raise ValueError(f"trimap: the band's width must be above 0 pixels; got {width}; give one such as 5")
    band = np.zeros(label.shape, bool)
    values = np.unique(label)
    for value in values if len(values) > 1 else ():  # one value has no boundary
        inside = label == value
        band |= inside & (ndimage.distance_transform_edt(inside) <= width)
    return band


def trimap_label(label: np.ndarray, width: float, ignore_label: int) -> np.ndarray:
    """Copies a label with everything outside the band around its boundaries ignored; arguments as of `trimap_band`."""
    return np.where(trimap_band(label, width), label, np.asarray(ignore_label, label.dtype))
