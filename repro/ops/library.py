"""Which implementation the ops run: the compiled kernels, or the reference twins where REPRO_REFERENCE=1 asks for them."""

from __future__ import annotations

import os

import torch

try:
    from repro import _C  # noqa: F401  registers torch.ops.repro.*

    COMPILED, COMPILE_ERROR = True, ""
except ImportError as error:
    COMPILED, COMPILE_ERROR = False, str(error)


def backend() -> str:
    """Names what the ops run: "kernels" or "reference".

    Raises:
        ValueError: REPRO_REFERENCE is neither unset, 0 nor 1.
        RuntimeError: The kernels are wanted but repro._C is not built; nothing falls back in silence.
    """
    setting = os.environ.get("REPRO_REFERENCE", "0")
    if setting not in ("0", "1"):
        raise ValueError(f"repro.ops: REPRO_REFERENCE must be 0 or 1; got {setting!r}; unset it to run the kernels")
    if setting == "1":
        return "reference"
    if not COMPILED:
        raise RuntimeError(
            f"repro.ops: the extension repro._C must be built; got {COMPILE_ERROR}; run `pip install --no-build-isolation -e .` in the repository, "
            "or set REPRO_REFERENCE=1 to run the slow reference"
        )
    return "kernels"


def check_one_device(op: str, *tensors: torch.Tensor | None) -> None:
    """Refuses tensors of several devices, as csrc/torch/checks.h does for the kernels. The fake kernels need it because torch calls them as soon as one tensor
    is on "meta": their result would be memory as found.

    Args:
        op: Named in the message.
        tensors: None is passed over.

    Raises:
        ValueError: The devices differ.
    """
    devices = {str(tensor.device): None for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"{op}: all tensors must be on one device; got {', '.join(devices)}; move them with .to()")
