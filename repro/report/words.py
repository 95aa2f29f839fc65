"""Numbers and states of the report's data in words: the filters of its templates."""

from __future__ import annotations

import json
import statistics
from typing import Any

from repro.protocol import MEAN_IOU
from repro.records.benchmark import measured, required
from repro.records.object_size import by_row
from repro.records.verdict import ABOVE, BELOW, IN_SPREAD, NOT_COMPARABLE, WITHIN

GLYPHS = {"": "", WITHIN: "●", IN_SPREAD: "◐", ABOVE: "▲", BELOW: "▼", NOT_COMPARABLE: "○"}
MARKS = {
    WITHIN: "within the tolerance",
    IN_SPREAD: "outside it, but the paper lies within two spreads over seeds",
    ABOVE: "above the paper",
    BELOW: "below the paper",
    NOT_COMPARABLE: "not comparable: protocol overridden",
}


def two(value: float | None) -> str:
    """Writes two decimals, as the paper does; a dash for nothing."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Writes a difference with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def three(value: float | None) -> str:
    """Writes three significant digits without an exponent."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def duration(seconds: float) -> str:
    """Writes a time in the unit that suits it."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def slug(text: str) -> str:
    """Turns a state into a name of a style."""
    return text.replace(" ", "-")


def sentence(text: str) -> str:
    """Begins with a capital and ends with a full stop."""
    text = capital(text.strip())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def capital(text: str) -> str:
    """Begins with a capital."""
    return text[:1].upper() + text[1:]


def pairs(table: dict[str, Any]) -> str:
    """Lists overrides."""
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items())


def heading(table: dict[str, Any]) -> str:
    """Names a table as the paper does."""
    name = table["name"]
    if name.startswith("table") and not table["own"]:
        return f"Table {name.removeprefix('table')}: {table['title']}"
    return table["title"]


def tolerance(table: dict[str, Any]) -> str:
    """Writes a table's tolerances."""
    words = {"evaluate": "for released weights", "retrain": "for a network trained anew"}
    return ", ".join(f"±{value:g} {words.get(key, key)}" for key, value in table["tolerance"].items())


def of_class(cell: dict[str, Any]) -> str:
    """Heads a cell in a row of classes: the class, or whose mean it is."""
    metric = cell["metric"]
    if isinstance(metric, list):
        return f"mean of {', '.join(metric)}"
    return "mean" if metric == MEAN_IOU else metric


def remark(cell: dict[str, Any]) -> str:
    """Says what a row of a list is, and why it has no measured value where it has none."""
    parts = []
    if cell["of"]:
        parts.append(f"the record of {cell['of']}")
    if cell.get("from"):
        measured = cell["from"]["measured"]
        parts.append(
            f"in brackets: difference from {cell['from']['row']}"
            + (f", measured {signed(measured)}" if measured is not None else "")
        )
    if cell["state"] == "not run" and cell["command"] and not cell["of"]:
        parts.append(f"not run yet: {cell['command'][0]}")
    return "; ".join([*([cell["why"]] if cell["why"] else []), *parts])


def missing(table: dict[str, Any]) -> dict[str, str]:
    """Says why cells are empty, in `text`, and what fills them, in `command`; both "" where none is."""
    cells = [cell for cell in table["cells"] if cell["state"] == "not run"]
    if not cells or table["layout"]["kind"] == "list":
        return {"text": "", "command": ""}
    sources = list(dict.fromkeys(cell["of"] for cell in cells if cell["of"]))
    if sources:
        listed = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
        text = f"{len(cells)} cells are empty because the records that they show are not there: {listed}."
        return {"text": text, "command": ""}
    if len(cells) < len(table["cells"]):
        text = f"Not run yet: {', '.join(cell['row'] for cell in cells)}. The first of them:"
        return {"text": text, "command": cells[0]["command"][0]}
    whole = cells[0]["command"][0].replace(f" --row {cells[0]['row']}", "")
    return {"text": "Not run yet. All of it:", "command": whole}


def against(table: dict[str, Any]) -> str:
    """Says how a table's cells stand to the paper's."""
    counts = table["counts"]
    if not counts["measured"]:
        return "not measured"
    if table["synthetic"]:
        return "synthetic: not comparable"
    if table["scale_model"]:
        return "a scale model: not comparable"
    if "printed" not in table["columns"]:
        return "not one of the paper’s tables" if table["own"] else "nothing printed"
    if not counts["comparable"]:
        return "not comparable: protocol overridden, or no tolerance stated"
    return f"{counts['within']} of {counts['comparable']} within tolerance or spread"


def notice_title(kind: str) -> str:
    """Heads what a reader must know before any number."""
    return {"synthetic": "Synthetic data", "scale model": "A scale model", "overridden": "Protocol overridden"}[kind]


def not_the_papers(kind: str) -> str:
    """Says what sets a claim's measurements apart from the paper's; "" for nothing."""
    words = {
        "synthetic": "synthetic data",
        "scale model": "reduced protocol",
        "overridden": "protocol overridden",
        "own": "own protocol",
    }
    return words.get(kind, "")


def _listed(names: list[str], values: list[float | None]) -> str:
    return ", ".join(f"{name} {two(value)}" for name, value in zip(names, values, strict=True) if value is not None)


def classes_alt(table: dict[str, Any]) -> str:
    """Describes the bars of IoU by class."""
    classes = table["classes"]
    return "Bars of IoU by class. " + " ".join(
        f"{one['row']}: {_listed(classes['classes'], one['mean'])}." for one in classes["series"]
    )


def confusion_alt(table: dict[str, Any]) -> str:
    """Describes the confusion matrix by its diagonal."""
    confusion = table["confusion"]
    hits = [None if line[n] is None else 100 * line[n] for n, line in enumerate(confusion["shares"])]
    return f"Confusion matrix of {confusion['row']}; percent of each label predicted as itself: {_listed(confusion['classes'], hits)}."


def curve_alt(curve: dict[str, Any], row: str) -> str:
    """Describes a loss curve by its ends."""
    tenth = max(1, len(curve["starts"]) // 10)
    first = statistics.fmean(statistics.fmean(values[:tenth]) for values in curve["loss"].values())
    last = statistics.fmean(statistics.fmean(values[-tenth:]) for values in curve["loss"].values())
    return f"Training loss of {row} over {curve['iterations']} iterations: {first:.2f} in the first tenth, {last:.2f} in the last."


def by_row_lists(entries: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Groups entries by row."""
    return list(by_row(entries).items())


def shown(pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """Chooses the pictures of a page: of a row that has a gallery, that alone, for it holds the others; each file once."""
    galleries = {figure["row"] for figure in pictures["figures"] if figure["kind"] == "gallery"}
    kept = [f for f in pictures["figures"] if f["kind"] == "gallery" or f["row"] not in galleries]
    return list({figure["href"]: figure for figure in kept}.values())


def by_picture_row(pictures: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Groups the pictures of a page by row."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for figure in shown(pictures):
        rows.setdefault(figure["row"], []).append(figure)
    return list(rows.items())


def single_picture(pictures: dict[str, Any]) -> dict[str, Any] | None:
    """Chooses the picture of the first screen: the first strip of one image; by the rule of repro.visualize that is one of its best row."""
    return next((f for f in pictures["figures"] if f["kind"] == "qualitative"), None)


def marks_alt(table: dict[str, Any]) -> str:
    """Describes the marks of a grid of cells."""
    values = (f"{cell['row']} {two(cell['mean'])}" for cell in table["cells"] if cell["mean"] is not None)
    return f"{capital(table['metric'])} of every row of {table['name']}: {', '.join(values)}."


def objects(entries: list[dict[str, Any]]) -> str:
    """Says how many objects and seeds stand behind a curve."""
    counts = [b["n_objects"] for b in entries[0]["bins"]]
    seeds = ", ".join(str(entry["seed"]) for entry in entries)
    return (
        f"{sum(counts)} objects, {min(counts)} to {max(counts)} a bin (hollow: fewer than 10); {'seeds' if len(entries) > 1 else 'seed'} {seeds}."
        if counts
        else f"seeds {seeds}."
    )


def size_alt(entries: list[dict[str, Any]], row: str) -> str:
    """Describes a curve of attention by its ends."""
    filled = [b for b in entries[0]["bins"] if b["n_objects"]]
    if not filled:
        return f"Mean attention weights of {row}: no objects."
    ends = [
        f"{where} objects ({b['size_min']:.0f} to {b['size_max']:.0f} pixels): "
        + ", ".join(f"scale {s:g} {w:.2f}" for s, w in zip(entries[0]["scales"], b["mean_weight"], strict=True))
        for where, b in (("smallest", filled[0]), ("largest", filled[-1]))
    ]
    return f"Mean attention weights of {row} against object size; {'; '.join(ends)}."


def conditions(table: dict[str, Any]) -> str:
    """Describes where a benchmark ran."""
    versions = table.get("versions", {})
    facts = [
        table["device_name"],
        f"{table['threads']} threads",
        table["dtype"],
        *(f"{name} {version}" for name, version in sorted(versions.items()) if name in ("torch", "cuda") and version),
        *([str(table["finished"])] if table.get("finished") else []),
    ]
    return ", ".join(facts)


def _bench_alt(bench: dict[str, Any], key: str, unit: str, scale: float) -> str:
    ours = [r for r in bench["results"] if r["contestant"] == "ours"]
    return "; ".join(f"{r['op']} {r['case']} {r['direction']} {three(scale * r[key])}{unit}" for r in ours) + "."


def ratio_alt(bench: dict[str, Any]) -> str:
    """Describes the bars of speed."""
    return "Times faster than the best eager PyTorch: " + _bench_alt(bench, "ratio", "×", 1)


def share_alt(bench: dict[str, Any]) -> str:
    """Describes the bars of bandwidth."""
    return "Share of the measured copy bandwidth: " + _bench_alt(bench, "share_of_copy", " %", 100)


FILTERS = {
    function.__name__: function
    for function in (
        two,
        signed,
        three,
        duration,
        slug,
        sentence,
        capital,
        pairs,
        heading,
        tolerance,
        of_class,
        remark,
        missing,
        against,
        notice_title,
        not_the_papers,
        classes_alt,
        confusion_alt,
        curve_alt,
        by_row_lists,
        shown,
        by_picture_row,
        objects,
        size_alt,
        conditions,
        ratio_alt,
        share_alt,
        required,
        measured,
    )
} | {
    "signed1": lambda value: signed(value, 1),
    "by_row": lambda cells: {cell["row"]: cell for cell in cells},
    "dict": dict,
    "commands_by_row": lambda cells: {cell["row"]: cell["command"] for cell in cells},
}
