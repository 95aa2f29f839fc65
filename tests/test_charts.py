"""Charts: what is drawn is what was measured, on a light and on a dark ground."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from repro.charts import curves
from repro.charts.bars import bench_bars, class_bars, confusion_map, table_marks
from repro.charts.curves import attention_by_size, loss_curve
from repro.charts.style import DARK, LIGHT, STAND_IN, adaptive, plain, save_png, svg

CLASSES = {
    "classes": ["background", "head", "torso"],
    "series": [
        {"row": "baseline", "seeds": 1, "mean": [80.0, 40.0, 20.0], "spread": [None] * 3},
        {"row": "attention3", "seeds": 2, "mean": [90.0, 60.5, 30.25], "spread": [1.0, 2.0, 3.0]},
    ],
    "printed": {"head": 81.47},
}


def texts(figure):
    return [e.text for e in ElementTree.fromstring(svg(figure)).iter("{http://www.w3.org/2000/svg}text")]


def test_class_bars_name_classes_rows_and_values():
    found = texts(class_bars(CLASSES))
    for text in ("background", "head", "torso", "baseline", "attention3", "printed", "90.0", "60.5", "30.2"):
        assert text in found
    assert "printed" not in texts(class_bars(CLASSES | {"printed": {}}))


def test_of_many_classes_the_best_and_the_worst_are_drawn():
    names = [f"class {n}" for n in range(81)]
    series = [{"row": "a", "seeds": 1, "mean": [float(n) for n in range(81)], "spread": [None] * 81}]
    found = [t for t in texts(class_bars({"classes": names, "series": series, "printed": {}})) if "class" in t]
    assert found == [f"class {n}" for n in [*range(80, 68, -1), *range(11, -1, -1)]]


def test_a_confusion_matrix_shows_percents_of_few_classes_and_survives_many():
    shares = [[0.9, 0.1], [None, None]]
    found = texts(confusion_map({"row": "a", "classes": ["sky", "sea"], "seeds": 1, "shares": shares}))
    assert {"90", "10", "sky", "sea"} <= set(found)
    assert "nan" not in found
    many = [[1.0 if x == y else 0.0 for x in range(81)] for y in range(81)]
    found = texts(confusion_map({"row": "a", "classes": [f"c{n}" for n in range(81)], "seeds": 1, "shares": many}))
    assert len([t for t in found if t.startswith("c")]) == 2 * 27


@pytest.mark.parametrize(
    ("rates", "ticks"),
    [([1e-3, 1e-4, 1e-5], {"1e-3", "1e-5"}), ([1e-3] * 3, {"1e-3"}), ([0.002, 0.001, 0.0], set()), ([], set())],
)
def test_a_loss_curve_with_any_policy(rates, ticks):
    curve = {"iterations": 300, "starts": [0, 100, 200], "loss": {"1": [2.0, 1.0, 0.5]}, "learning_rate": rates}
    found = texts(loss_curve("max2", curve))
    assert "max2" in found
    assert ticks <= set(found)
    assert ("rate" in found) is bool(rates)


def test_running_means():
    assert curves._smooth([1.0, 2.0, 6.0, 7.0], 1) == [1.5, 3.0, 5.0, 6.5]


def test_attention_by_size_weights_seeds_by_objects():
    def entry(seed, weight, objects):
        bins = [
            {
                "size_min": 4.0,
                "size_max": 9.0,
                "n_objects": objects,
                "mean_weight": [weight, 1 - weight],
                "std": [0, 0],
            },
            {"size_min": 9.0, "size_max": 16.0, "n_objects": 0, "mean_weight": [], "std": []},
        ]
        return {"row": "a", "seed": seed, "scales": [1, 0.5], "bins": bins}

    same = [entry(1, 0.5, 40)]
    mixed = [entry(1, 0.8, 10), entry(2, 0.4, 30)]  # (0.8 * 10 + 0.4 * 30) / 40
    assert curves.pooled(same, 0) == [(6.0, 0.5, 0.0, True)]
    assert curves.pooled(mixed, 0) == [
        (6.0, pytest.approx(0.5), pytest.approx((0.25 * 0.3**2 + 0.75 * 0.1**2) ** 0.5), True)
    ]
    assert curves.pooled([entry(1, 0.8, 9)], 1) == [(6.0, pytest.approx(0.2), pytest.approx(0.0, abs=1e-6), False)]
    assert svg(attention_by_size(same)) != svg(attention_by_size([entry(1, 0.6, 40)]))
    found = texts(attention_by_size([*mixed, entry(1, 0.5, 4) | {"row": "b"}], "A title", "A note"))
    assert {"scale 1", "scale 0.5", "a, 2 seeds", "b", "A title", "A note"} <= set(found)


def test_bench_bars_leave_eager_out_and_state_the_ratio():
    results = [
        {
            "op": "interp",
            "case": "x8",
            "direction": "forward",
            "contestant": name,
            "ratio": ratio,
            "share_of_copy": 0.25,
        }
        for name, ratio in (("ours", 2.5), ("eager", 1.0), ("eager-nchw", 0.5), ("compile", 1.25))
    ]
    found = texts(bench_bars(results, ["ratio"]))
    assert {"2.50×", "1.25×", "ours", "compile"} <= set(found)
    assert "1.00×" not in found
    shares = texts(bench_bars(results, ["share_of_copy"]))
    assert "25 %" in shares
    assert "compile" not in shares


def test_colours_follow_the_page():
    drawn = svg(class_bars(CLASSES))
    coloured, light_alone = adaptive(drawn), plain(drawn)
    for stand_in, colour in zip(STAND_IN, LIGHT, strict=True):
        assert stand_in not in coloured
        assert stand_in not in light_alone
        assert (stand_in in drawn) is (colour in light_alone)
    light, _, dark = coloured.partition("@media screen and (prefers-color-scheme:dark)")
    for scheme, style in ((LIGHT, light), (DARK, dark.partition("</style>")[0])):
        assert all(f"--c{number}:{colour}" in style for number, colour in enumerate(scheme))
    assert "prefers-color-scheme" not in light_alone
    assert set(re.findall(r"var\((--c\d)\)", coloured)) <= set(re.findall(r"(--c\d):", coloured))
    ElementTree.fromstring(coloured)
    ElementTree.fromstring(light_alone)


def test_a_png_has_the_light_colours_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(class_bars(CLASSES, LIGHT), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        found = {"#{:02x}{:02x}{:02x}".format(*rgb[:3]) for _, rgb in image.convert("RGB").getcolors(1 << 20)}
    assert {"#ffffff", LIGHT.accent, LIGHT.base, LIGHT.second} <= found
    assert not found & set(STAND_IN)


def test_names_from_records_are_cut_and_never_formulas():
    long = "$\\frac{1}{0}$" + "x" * 400
    found = texts(class_bars(CLASSES | {"classes": [long, "<b>", "torso"], "printed": {}}))
    assert long[:23] + "…" in found
    assert "<b>" in found


def grid_table(scale_model):
    """Makes a grid of three cells, of which two were measured."""
    cells = [
        {"row": "baseline", "mean": 40.0, "spread": None, "paper": 51.91},
        {"row": "max2", "mean": 52.0, "spread": 1.0, "paper": 52.90},
        {"row": "max2-extra", "mean": None, "spread": None, "paper": 55.26},
    ]
    blocks = [{"scales": "{1, 0.5}", "lines": [{"merge": "Max-pooling", "cells": ["max2", "max2-extra"]}]}]
    layout = {"kind": "grid", "baseline": "baseline", "blocks": blocks}
    return {"cells": cells, "layout": layout, "metric": "mean IoU", "scale_model": scale_model}


def test_marks_of_a_grid():
    figure = table_marks(grid_table(scale_model=False))
    assert {"Single scale", "Max-pooling {1, 0.5}", "mean IoU, percent", "without", "printed"} <= set(texts(figure))
    marks, printed = (line.get_xdata().tolist() for line in figure.axes[0].lines[:2])
    assert (marks, printed) == ([40.0, 52.0], [51.91, 52.90])
    assert "printed" not in texts(table_marks(grid_table(scale_model=True)))  # other data than the paper's


def test_no_number_of_the_class_bars_lies_on_a_bar_or_a_tick():
    classes = CLASSES | {"printed": dict(zip(CLASSES["classes"], (99.0, 61.5, 33.0), strict=True))}
    figure = class_bars(classes)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    left = [axes.transData.inverted().transform(text.get_window_extent())[0, 0] for text in axes.texts]
    assert len(left) == 3
    assert min(left) > 100  # percent, where no bar and no tick can lie


def size_entry(row, seed, first):
    """Makes a curve of three bins, the last one of few objects."""
    bins = [
        {"size_min": 2.0**k, "size_max": 2.0 ** (k + 1), "n_objects": n, "mean_weight": [m, 1 - m], "std": [0.1, 0.2]}
        for k, (m, n) in enumerate(((first, 30), (0.5, 20), (0.25, 3)))
    ]
    return {"row": row, "seed": seed, "scales": [1, 0.5], "bins": bins}


def test_the_curve_of_attention_shows_its_numbers():
    entries = [size_entry("attention2", 1, 0.75), size_entry("extra", 1, 0.6), size_entry("extra", 2, 0.7)]
    first, second = attention_by_size(entries).axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["attention2", "extra, 2 seeds"]
    fine, hollow, filled, coarse, *_ = first.get_lines()
    assert fine.get_ydata() == pytest.approx([0.75, 0.5, 0.25])
    assert (hollow.get_ydata(), filled.get_ydata()) == (pytest.approx([0.25]), pytest.approx([0.75, 0.5]))
    assert (hollow.get_markerfacecolor(), filled.get_label()) == ("none", "scale 1")
    assert coarse.get_ydata() == pytest.approx([0.25, 0.5, 0.75])
    assert second.get_lines()[0].get_ydata() == pytest.approx([0.65, 0.5, 0.25])
    bars = [segment[:, 1].tolist() for segment in first.collections[0].get_segments()]
    assert bars == [pytest.approx([m - 0.1, m + 0.1]) for m in (0.75, 0.5, 0.25)]


def test_a_curve_without_objects_is_drawn():
    figure = attention_by_size([{"row": "a", "seed": 1, "scales": [1, 0.5], "bins": []}])
    assert "a" in texts(figure)
