"""The figures of the report: what is drawn is what was measured, on a light and on a dark ground."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from repro.report import figures

CLASSES = {
    "classes": ["background", "head", "torso"],
    "series": [
        {"row": "baseline", "seeds": 1, "mean": [80.0, 40.0, 20.0], "spread": [None] * 3},
        {"row": "attention3", "seeds": 2, "mean": [90.0, 60.5, 30.25], "spread": [1.0, 2.0, 3.0]},
    ],
    "printed": {"head": 81.47},
}


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_class_bars_name_classes_rows_and_values():
    found = texts(figures.class_bars(CLASSES))
    for text in ("background", "head", "torso", "baseline", "attention3", "printed", "90.0", "60.5", "30.2"):
        assert text in found
    assert "printed" not in texts(figures.class_bars(CLASSES | {"printed": {}}))


def test_of_many_classes_the_best_and_the_worst_are_drawn():
    names = [f"class {n}" for n in range(81)]
    series = [{"row": "a", "seeds": 1, "mean": [float(n) for n in range(81)], "spread": [None] * 81}]
    found = [t for t in texts(figures.class_bars({"classes": names, "series": series, "printed": {}})) if "class" in t]
    assert found == [f"class {n}" for n in [*range(80, 68, -1), *range(11, -1, -1)]]


def test_a_confusion_matrix_shows_percents_of_few_classes_and_survives_many():
    shares = [[0.9, 0.1], [None, None]]
    found = texts(figures.confusion_map({"row": "a", "classes": ["sky", "sea"], "seeds": 1, "shares": shares}))
    assert {"90", "10", "sky", "sea"} <= set(found)
    assert "nan" not in found
    many = [[1.0 if x == y else 0.0 for x in range(81)] for y in range(81)]
    found = texts(
        figures.confusion_map({"row": "a", "classes": [f"c{n}" for n in range(81)], "seeds": 1, "shares": many})
    )
    assert len([t for t in found if t.startswith("c")]) == 2 * 27


@pytest.mark.parametrize(
    ("rates", "ticks"),
    [([1e-3, 1e-4, 1e-5], {"1e-3", "1e-5"}), ([1e-3] * 3, {"1e-3"}), ([0.002, 0.001, 0.0], set()), ([], set())],
)
def test_a_loss_curve_with_any_policy(rates, ticks):
    curve = {"iterations": 300, "starts": [0, 100, 200], "loss": {"1": [2.0, 1.0, 0.5]}, "learning_rate": rates}
    found = texts(figures.loss_curve("max2", curve))
    assert "max2" in found
    assert ticks <= set(found)
    assert ("rate" in found) is bool(rates)


def test_running_means():
    assert figures._smooth([1.0, 2.0, 6.0, 7.0], 1) == [1.5, 3.0, 5.0, 6.5]


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
    assert figures.attention_by_size("a", same) == figures.attention_by_size("a", mixed)
    assert figures.attention_by_size("a", same) != figures.attention_by_size("a", [entry(1, 0.6, 40)])
    assert {"scale 1", "scale 0.5"} <= set(texts(figures.attention_by_size("a", same)))


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
    found = texts(figures.bench_bars(results, "ratio"))
    assert {"2.50×", "1.25×", "ours", "compile"} <= set(found)
    assert "1.00×" not in found
    shares = texts(figures.bench_bars(results, "share_of_copy"))
    assert "25 %" in shares
    assert "compile" not in shares


def test_colours_follow_the_page():
    drawn = figures.class_bars(CLASSES)
    adaptive, plain = figures.adaptive(drawn), figures.plain(drawn)
    for stand_in, colour in figures.LIGHT.items():
        assert stand_in not in adaptive
        assert stand_in not in plain
        assert (stand_in in drawn) is (colour in plain) or colour == "#ffffff"
    light, _, dark = adaptive.partition("@media screen and (prefers-color-scheme:dark)")
    for scheme, style in ((figures.LIGHT, light), (figures.DARK, dark.partition("</style>")[0])):
        assert all(f"--c{number}:{colour}" in style for number, colour in enumerate(scheme.values()))
    assert "prefers-color-scheme" not in plain
    assert set(re.findall(r"var\((--c\d)\)", adaptive)) <= set(re.findall(r"(--c\d):", adaptive))
    ElementTree.fromstring(adaptive)
    ElementTree.fromstring(plain)


def test_names_from_records_are_cut_and_never_formulas():
    long = "$\\frac{1}{0}$" + "x" * 400
    found = texts(figures.class_bars(CLASSES | {"classes": [long, "<b>", "torso"], "printed": {}}))
    assert long[:23] + "…" in found
    assert "<b>" in found
