"""Records as a run would write them, for the tests of all that reads records."""

import json

from repro.protocol import load_protocol, settings_sha256
from repro.records.store import FORMAT


def record(table: str, row_id: str, value: float | None, seed: int = 1, **changes) -> dict:
    """Makes a record of a row as a run would write it.

    Args:
        table: Its protocol.
        row_id: The row.
        value: Percent; of three classes the first has ten more and the third ten less, of others all have it.
        seed: The seed.
        changes: Keys of the record; overrides in `deviates` are applied to the settings.
    """
    row = load_protocol(table).row(row_id)
    names = row.settings["data"]["class_names"]
    deviates = changes.pop("deviates", {})
    settings = json.loads(json.dumps(row.settings))
    for key, given in deviates.items():
        section, _, name = key.partition(".")
        if name:
            settings[section][name] = given
    labelled = "submission" not in changes
    spread = (10, 0, -10) if len(names) == 3 else [0] * len(names)
    confusion = [[90, 5, 5], [20, 80, 0], [0, 0, 0]]
    if len(names) != 3:
        confusion = [[100 * (x == y) for x in range(len(names))] for y in range(len(names))]
    made = {
        "format": FORMAT,
        "table": table,
        "row": row_id,
        "seed": seed,
        "value": value,
        "paper": row.paper,
        "per_class": {name: value + more for name, more in zip(names, spread, strict=True)} if labelled else {},
        "confusion": confusion if labelled else [],
        "n_images": 3,
        "loss_curve": [2.0, 1.5, 1.25, 1.0, 0.75, 0.5],
        "deviates": deviates,
        "synthetic": "synthetic" in row.settings,
        "note": "",
        "settings": settings,
        "provenance": {
            "protocol_sha256": "p",
            "settings_sha256": settings_sha256(settings),
            "data_sha256": "d",
            "weights": "tiny.caffemodel",
            "weights_sha256": "w",
            "seed": seed,
            "precision": "fp32",
            "backend": "kernels",
        },
        "run": {
            "device": "cpu",
            "device_name": "A processor",
            "threads": 2,
            "finished": "2026-01-02T03:04:05+00:00",
            "git": {"commit": "c0ffee", "dirty": False},
            "versions": {"torch": "2.13.0", "python": "3.11.7"},
            "seconds": 4.5,
            "train_seconds": 3.0,
        },
    }
    return made | changes


def stamped(made: dict) -> dict:
    """Gives a record whose settings were changed their fingerprint."""
    made["provenance"]["settings_sha256"] = settings_sha256(made["settings"])
    return made


def other_settings(made: dict) -> dict:
    """Makes a record one of a protocol that has changed since."""
    made["settings"]["solver"]["gamma"] = 0.5
    return stamped(made)
