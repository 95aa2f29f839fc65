"""The network that a recorded run trained, from the snapshot beside its record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from repro.models import MultiScale, build
from repro.solver.train import SNAPSHOT_FORMAT


def identity_of(made_from: dict[str, Any]) -> str:
    """Names a run by everything that its numbers depend on; a protocol file may change in what they do not.

    Args:
        made_from: A record's provenance; the backend, which a record adds, is left out.
    """
    kept = {key: value for key, value in made_from.items() if key != "backend"} | {"protocol_sha256": None}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def trained_network(record: dict[str, Any], snapshot: Path) -> MultiScale:
    """Builds a recorded row's network with the parameters that its training ended with.

    Args:
        record: The row's record.
        snapshot: The snapshot.pt beside it.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: There is no snapshot.
        ValueError: It is damaged, another run's, or not the last; nothing is loaded in part.
    """
    if not snapshot.is_file():
        raise FileNotFoundError(
            f"{snapshot}: must hold the row's trained parameters; got no such file; run the row again in an empty --out"
        )
    settings = record["settings"]
    network = build(settings["model"], len(settings["data"]["class_names"]), seed=0)
    try:
        state = torch.load(snapshot, map_location="cpu", weights_only=True)
        if state["format"] != SNAPSHOT_FORMAT or state["identity"] != identity_of(record["provenance"]):
            raise ValueError("another run's snapshot (settings, data, weights, seed or precision differ)")
        if state["iteration"] != settings["solver"]["max_iter"]:
            raise ValueError(f"the snapshot of iteration {state['iteration']} of {settings['solver']['max_iter']}")
        parameters = {
            f"{name}.{blob}": getattr(layer, blob)
            for name, layer in network.convolutions().items()
            for blob in ("weight", "bias")
        }
        different = [
            name
            for name in sorted(parameters.keys() | state["parameters"].keys())
            if name not in parameters
            or name not in state["parameters"]
            or parameters[name].shape != state["parameters"][name].shape
        ]
        if different:
            raise ValueError(f"other parameters: {', '.join(different)}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["parameters"][name])
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{snapshot}: must be the last snapshot of the record beside it; got {reason}; run the row again in an empty --out"
        ) from error
    return network.eval()
