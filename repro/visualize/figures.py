"""The figures of a run: pictures chosen by rule, weight maps of every scale, and attention against object size, under OUT/<table>/figures."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from repro.charts.curves import FEW_OBJECTS, attention_by_size
from repro.charts.style import LIGHT, plain, save_png, svg
from repro.data.lists import Item
from repro.device import Compute
from repro.files import write_json, write_text
from repro.solver.snapshot import trained_network
from repro.visualize.choose import choose, count, image_iou, reference_run, rule
from repro.visualize.network import Seen, see
from repro.visualize.paint import Painter
from repro.visualize.runs import Recorded, joint_note, read_records, validation_items
from repro.visualize.sizes import PARTS_FOLDER, SizedObject, size_bins, sized_objects

FORMAT = 1
DRAWING = 3  # goes up with every change of what is drawn: figures of another version are drawn anew
CURVE = "attention_by_size"
_ORDER = ("attention", "max", "average")


class _Pass(NamedTuple):
    """What looking at every validation image gave: image by image its IoU and whether its label shows an object; objects; the confusion matrix."""

    ious: list[float | None]
    has_object: list[bool]
    objects: list[SizedObject]
    confusion: np.ndarray


def _look_at_all(run: Recorded, items: Sequence[Item], device: torch.device) -> _Pass:
    data = run.record["settings"]["data"]
    classes, ignore = len(data["class_names"]), data["ignore_label"]
    found = _Pass([], [], [], np.zeros((classes, classes), np.int64))
    network = trained_network(run.record, run.snapshot).to(device)
    for seen in see(network, items, run.record["settings"], Compute(device, run.record["provenance"]["precision"])):
        counts = count(seen, classes, ignore)
        found.ious.append(image_iou(counts))
        found.has_object.append(bool(counts[1:].any()))
        found.confusion[:] += counts
        if run.model["merge"] == "attention":
            found.objects.extend(sized_objects(seen.label, seen.maps, ignore, data["labels"] == PARTS_FOLDER))
    return found


def _look_at(run: Recorded, items: Sequence[Item], device: torch.device) -> list[Seen]:
    network = trained_network(run.record, run.snapshot).to(device)
    return list(see(network, items, run.record["settings"], Compute(device, run.record["provenance"]["precision"])))


def _first_seeds(runs: Sequence[Recorded]) -> list[Recorded]:
    first: dict[str, Recorded] = {}
    for one in sorted(runs, key=lambda one: one.record["seed"]):
        first.setdefault(one.record["row"], one)
    return list(first.values())


def _rival(runs: Sequence[Recorded], reference: Recorded) -> Recorded | None:
    """Finds the max-pooling row to set beside an attention row: of the same scales, preferably with the same supervision."""
    rivals = [one for one in runs if one.model["merge"] == "max" and one.model["scales"] == reference.model["scales"]]
    same = [one for one in rivals if one.model["extra_supervision"] == reference.model["extra_supervision"]]
    return next(iter(same or rivals), None) if reference.model["merge"] == "attention" else None


def _draw_data_set(
    runs: Sequence[Recorded], folder: Path, data_root: Path | None, device: torch.device, suffix: str, flat: bool
) -> dict[str, Any]:
    """Draws the figures of all runs on one data set; returns what figures.json says of them."""
    reference = reference_run(runs)
    items = validation_items(reference, data_root)
    passes = {reference.key: _look_at_all(reference, items, device)}
    for one in runs:
        if one.model["merge"] == "attention" and one.key not in passes:
            passes[one.key] = _look_at_all(one, items, device)
    seen_all = passes[reference.key]
    choices = choose(seen_all.ious, seen_all.has_object, items)
    shown = [choice.item for choice in choices]

    firsts = _first_seeds(runs)
    firsts.sort(
        key=lambda one: (
            one.key != reference.key,
            *(
                [_ORDER.index(one.model["merge"]), -len(one.model["scales"])]
                if one.model["merge"] in _ORDER
                else [9, 0]
            ),
            one.record["row"],
        )
    )
    seen = {one.key: _look_at(one, shown, device) for one in firsts}
    baseline = next((one for one in firsts if not one.drawn and "msc_filters" not in one.model), None)
    painter = Painter(folder, runs, choices, flat)
    drawn = [one for one in firsts if one.drawn]
    before = seen[baseline.key] if baseline else None
    painter.overview(reference, seen[reference.key], before)
    rival = _rival(drawn, reference)
    if rival is not None:
        painter.comparison(
            [(rival, seen[rival.key]), (reference, seen[reference.key])], f"max-and-attention{suffix}.png"
        )
    for one in drawn:
        painter.row(one, seen[one.key], before)
    return {
        "figures": painter.figures,
        "rule": rule(reference, len(items)),
        CURVE: [
            {
                "row": one.record["row"],
                "seed": one.record["seed"],
                "scales": one.model["scales"],
                "bins": size_bins(passes[one.key].objects),
            }
            for one in runs
            if one.key in passes and one.model["merge"] == "attention"
        ],
        "repeated": {
            key: {
                "pixels": int(found.confusion.sum()),
                # Half of the sum: a pixel that is predicted otherwise leaves one count and enters another.
                "different": int(
                    np.abs(
                        found.confusion - np.asarray(next(o for o in runs if o.key == key).record["confusion"])
                    ).sum()
                )
                // 2,
            }
            for key, found in passes.items()
        },
    }


def _draw_curve(entries: Sequence[dict[str, Any]], note: str, parts: bool, folder: Path) -> dict[str, str]:
    what = "persons: connected regions of parts" if parts else "connected regions of one class"
    title = "Mean attention weight of every scale against object size"
    below = (
        f"{note[:1].upper()}{note[1:]}{'. ' if note else ''}Objects of the validation labels ({what}); bars: one standard deviation over objects; "
        f"hollow: fewer than {FEW_OBJECTS} objects"
    )
    write_text(folder / f"{CURVE}.svg", plain(svg(attention_by_size(entries, title, below))))
    save_png(attention_by_size(entries, title, below, LIGHT), folder / f"{CURVE}.png")
    return {
        "svg": f"{CURVE}.svg",
        "png": f"{CURVE}.png",
        "alt": f"Curves of the mean attention weight of every scale against object size, one panel for each of {', '.join(dict.fromkeys(e['row'] for e in entries))}.",
        "caption": f"Mean attention weight over the pixels of an object ({what} in the validation labels), by the root of the object's area; "
        f"bins of half an octave; the spread is one standard deviation over objects.{' ' + note[:1].upper() + note[1:] + '.' if note else ''}",
    }


def figures_of_run(
    out: Path,
    table: str,
    *,
    data_root: Path | None = None,
    device: torch.device | None = None,
    folder: Path | None = None,
    flat: bool = False,
    log: Callable[[str], None] = print,
) -> Path | None:
    """Draws the figures of a table's recorded rows, unless they are there already.

    Args:
        out: The --out folder of the run.
        table: Whose records.
        data_root: Of the run; None for synthetic data.
        device: Where the networks run; None for the CPU.
        folder: Where the figures go; by default OUT/<table>/figures.
        flat: Whether all weight maps have one scale from 0 to 1, in place of one each that shows how it varies.
        log: Says what was done and what was left out.

    Returns:
        figures.json, which lists them; None where no row of several scales or with a CRF was recorded with its parameters.

    Raises:
        FileNotFoundError, ValueError: The validation images are not at hand, or a snapshot is not its record's.

    Paper: figures 4 and 5, and section 4's statement of what each scale attends to.
    """
    started = time.monotonic()
    folder = out / table / "figures" if folder is None else folder
    runs = read_records(out, table, log)
    for one in runs:
        if not one.snapshot.is_file():
            log(f"{one.path.parent}: its figures are left out, for its snapshot.pt was not kept")
    runs = [one for one in runs if one.snapshot.is_file()]
    groups: dict[str, list[Recorded]] = {}
    for one in runs:
        groups.setdefault(one.record["provenance"]["data_sha256"], []).append(one)
    groups = {key: ours for key, ours in groups.items() if any(one.drawn for one in ours)}
    if not groups:
        log(f"{table}: no figures, for no row of several scales or with a CRF is recorded with its parameters")
        return None

    index = folder / "figures.json"
    records = {one.key: one.sha256 for ours in groups.values() for one in ours}
    old = _read_index(index)
    old_files = [folder / name for name in old.get("files", [])]
    same = [old.get(key) for key in ("format", "drawing", "records", "flat")] == [FORMAT, DRAWING, records, flat]
    if same and all(path.is_file() for path in old_files):
        log(f"{table}: figures are up to date: {index}")
        return index
    index.unlink(missing_ok=True)  # a killed program leaves no list of figures that were half renewed
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu") if device is None else device
    parts = [
        _draw_data_set(ours, folder, data_root, device, f"-{number}" if number else "", flat)
        for number, ours in enumerate(groups.values())
    ]
    used = [one for ours in groups.values() for one in ours]
    note = joint_note(used)
    curves = [entry for part in parts for entry in part[CURVE]]
    document = {
        "format": FORMAT,
        "drawing": DRAWING,
        "flat": flat,
        "table": table,
        "rule": " ".join(part["rule"] for part in parts),
        "figures": [figure for part in parts for figure in part["figures"]],
        CURVE: curves,
        "synthetic": any(one.record["synthetic"] for one in used),
        "note": note,
        "records": records,
        "repeated": {key: value for part in parts for key, value in part["repeated"].items()},
    }
    if curves:
        labels = {one.record["settings"]["data"]["labels"] for one in used}
        document["curve"] = _draw_curve(curves, note, labels == {PARTS_FOLDER}, folder)
    document["files"] = sorted(
        [figure["file"] for figure in document["figures"]]
        + [document["curve"][kind] for kind in ("svg", "png") if curves]
    )
    for stale in {*old_files} - {folder / name for name in document["files"]}:
        stale.unlink(missing_ok=True)
    write_json(index, document)
    log(f"{table}: {len(document['files'])} figures in {time.monotonic() - started:.0f} s: {index}")
    return index


def _read_index(index: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(index.read_text(encoding="utf-8"))
        if isinstance(document, dict) and all(
            isinstance(name, str) and "/" not in name for name in document.get("files", [])
        ):
            return document
    return {}
