"""Painting the strips of a run: image, label, predictions and weight maps, as in the paper's figures 4 and 5, each with its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.transforms import read_image_bgr
from repro.visualize.choose import Choice, count, image_iou
from repro.visualize.draw import FLAT, Panel, Strip, class_colours, draw_strips, own_span, save_png
from repro.visualize.network import SHARE, Seen
from repro.visualize.runs import Recorded, joint_note


def scale_panels(seen: Seen, run: Recorded, flat: bool) -> list[Panel]:
    """Makes the weight map panels of a merged row, each on its own span or (flat) from 0 to 1; none where every scale has the same weight everywhere."""
    if seen.maps is None:
        return []
    what = SHARE[run.model["merge"]]
    titles = [
        f"scale {scale:g}\n{what} {share:.2f}"
        for scale, share in zip(run.model["scales"], seen.maps.mean((1, 2)), strict=True)
    ]
    return [Panel(title, one, FLAT if flat else own_span(one)) for title, one in zip(titles, seen.maps, strict=True)]


def _untitled(panels: Sequence[Panel | None], first: bool) -> list[Panel | None]:
    """Leaves the first line of the titles where a strip is the first of a figure, and nothing below it."""
    return [p and p._replace(title=p.title.partition("\n")[0] if first else "") for p in panels]


def _shown(seen: Seen, baseline: Seen | None) -> list[np.ndarray]:
    """Lists the label maps that a strip shows, for its legend."""
    found = [seen.label, seen.prediction, seen.before_crf, baseline and baseline.prediction]
    return [one for one in found if one is not None]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


class Painter:
    """Draws the figures of the rows of one data set into a folder, and lists them as figures.json does.

    Args:
        folder: Where the files go.
        runs: All on this data set.
        choices: The images.
        flat: Whether all weight maps have one scale from 0 to 1, or each its own span.

    Attributes:
        figures: What was drawn.
    """

    def __init__(self, folder: Path, runs: Sequence[Recorded], choices: Sequence[Choice], flat: bool):
        self.folder, self.choices, self.flat = folder, choices, flat
        data = runs[0].record["settings"]["data"]
        self.class_names, self.ignore = data["class_names"], data["ignore_label"]
        self.colours = class_colours(len(self.class_names))
        self.images = [np.ascontiguousarray(read_image_bgr(choice.item.image)[..., ::-1]) for choice in choices]
        note = joint_note(runs)
        self.note = f"{note[:1].upper()}{note[1:]}." if note else ""
        self.figures: list[dict[str, Any]] = []

    def _iou(self, seen: Seen) -> float | None:
        return image_iou(count(seen, len(self.class_names), self.ignore))

    def _add(
        self, name: str, strips: Sequence[Strip], labels: Sequence[np.ndarray], subtitle: str, **entry: Any
    ) -> None:
        shown = sorted({int(value) for label in labels for value in np.unique(label)})
        legend = [(self.class_names[v], self.colours[v]) for v in shown if v < len(self.class_names)]
        if self.ignore in shown:
            legend.append(("ignored", self.colours[self.ignore]))
        save_png(draw_strips(strips, entry["title"], f"{self.note} {subtitle}".strip(), legend), self.folder / name)
        self.figures.append({"file": name, **entry, "caption": f"{entry['caption']} {self.note}".strip()})

    def _panels(self, i: int, seen: Seen, baseline: Seen | None, run: Recorded) -> list[Panel]:
        panels = [Panel("image", self.images[i]), Panel("label", self.colours[seen.label])]
        if baseline is not None:
            panels.append(Panel(f"baseline\nIoU {_percent(self._iou(baseline))}", self.colours[baseline.prediction]))
        if seen.before_crf is not None:
            before = seen._replace(prediction=seen.before_crf)
            panels.append(Panel(f"before the CRF\nIoU {_percent(self._iou(before))}", self.colours[seen.before_crf]))
        name = run.model["merge"] if seen.before_crf is None else "after the CRF"
        merged = Panel(f"{name}\nIoU {_percent(self._iou(seen))}", self.colours[seen.prediction])
        edge = [] if seen.edge is None else [Panel("edge map", seen.edge, own_span(seen.edge))]
        return [*panels, merged, *scale_panels(seen, run, self.flat), *edge]

    def row(self, run: Recorded, seen: Sequence[Seen], baseline: Sequence[Seen] | None) -> None:
        """Draws a row's strip for every chosen image.

        Args:
            run: Of several scales, or with a CRF.
            seen: What it makes of the chosen images.
            baseline: What the baseline makes of them, if it was run.
        """
        row = run.record["row"]
        for i, (choice, one) in enumerate(zip(self.choices, seen, strict=True)):
            value, before = self._iou(one), baseline[i] if baseline else None
            labels = _shown(one, before)
            first = "the prediction of baseline, " if before else ""
            refined = "" if one.before_crf is None else " before its CRF and after it"
            order = f"image, label, {first}the prediction of {row}{refined}"
            means = "" if one.maps is None else f" (means {', '.join(f'{m:.2f}' for m in one.maps.mean((1, 2)))})"
            self._add(
                f"{row}-{choice.index:05d}.png",
                [Strip("", self._panels(i, one, before, run))],
                labels,
                f"{choice.item.name}; mean IoU of this image {_percent(value)} %",
                kind="qualitative",
                row=row,
                title=f"{row}, {choice.why}",
                alt=f"{choice.item.name}: {order}; {self._meaning(run)}{means}. Mean IoU {_percent(value)} percent.",
                caption=f"{choice.item.name} ({choice.why}), from left: {order} (mean IoU {_percent(value)} %); {self._meaning(run)}{means}.",
                image=choice.item.name,
                iou=value,
                chosen=choice.why,
            )

    def overview(self, run: Recorded, seen: Sequence[Seen], baseline: Sequence[Seen] | None) -> None:
        """Draws a row's strips of all chosen images below each other; arguments as for `row`."""
        strips, labels = [], []
        for i, (choice, one) in enumerate(zip(self.choices, seen, strict=True)):
            before = baseline[i] if baseline else None
            labels += _shown(one, before)
            name = f"{choice.why}\nIoU {_percent(self._iou(one))}".replace(", ", ",\n")
            strips.append(Strip(name, _untitled(self._panels(i, one, before, run), i == 0)))
        row = run.record["row"]
        self._add(
            f"{row}.png",
            strips,
            labels,
            "Images chosen by rule; IoU: mean over the classes of one image, percent",
            kind="gallery",
            row=row,
            title=f"{row}: image, label, predictions and weight maps",
            alt=f"{len(strips)} images, each with its label, predictions and {self._meaning(run)}.",
            caption=f"{row}, images chosen by rule and not by hand: image, label, predictions, and {self._meaning(run)}.",
            **self._chosen(),
        )

    def comparison(self, runs: Sequence[tuple[Recorded, Sequence[Seen]]], name: str) -> None:
        """Draws the weight maps of several runs for the same images beside each other.

        Args:
            runs: Of the same scales, each with what it makes of the chosen images.
            name: The file's.

        Paper: section 4, the weight maps "produced by max-pooling and by attention".
        """
        strips = []
        for i, choice in enumerate(self.choices):
            panels = [Panel("image", self.images[i])]
            for run, seen in runs:
                panels += [
                    p._replace(title=f"{run.record['row']}, {p.title}") for p in scale_panels(seen[i], run, self.flat)
                ]
            strips.append(Strip(choice.why.replace(", ", ",\n"), _untitled(panels, i == 0)))
        names = " and ".join(run.record["row"] for run, _ in runs)
        self._add(
            name,
            strips,
            [],
            "; ".join(f"{run.record['row']}: {self._meaning(run)}" for run, _ in runs),
            kind="gallery",
            row=runs[-1][0].record["row"],
            title=f"Weight maps of {names}",
            alt=f"Weight maps of {names} for {len(self.choices)} images, a column per row and scale.",
            caption=f"Weight maps of {names} for the same images, a column per row and scale. "
            + " ".join(f"{run.record['row']}: {self._meaning(run)}." for run, _ in runs),
            **self._chosen(),
        )

    def _chosen(self) -> dict[str, Any]:
        """Says which images a figure of all of them shows."""
        return {
            "image": ", ".join(choice.item.name for choice in self.choices),
            "iou": None,
            "chosen": "; ".join(choice.why for choice in self.choices),
        }

    def _meaning(self, run: Recorded) -> str:
        """Says what a row's weight maps show, and its edge map."""
        scales = ", ".join(f"{scale:g}" for scale in run.model["scales"])
        edges = ", and the edges where its domain transform stops smoothing" if "dt_num_iter" in run.model else ""
        if run.model["merge"] == "attention":
            ends = "from 0 to 1" if self.flat else "each from its lowest to its highest, which stand below it"
            return f"the attention weights of scales {scales}, {ends}{edges}"
        if run.model["merge"] == "max":
            return f"for each of scales {scales}, bright where its score wins in the predicted class{edges}"
        if run.model["merge"] == "none":
            return f"no weight maps, for there is one scale{edges}"
        return f"no weight maps, for scales {scales} weigh the same everywhere{edges}"
