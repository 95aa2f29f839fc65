"""Drawing strips: pictures, weight maps on a scale, colours of classes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from repro.visualize.draw import FLAT, Panel, Strip, class_colours, draw_strips, heat, overlay, own_span, save_png


def test_strips_show_colours_weights_and_a_bar(tmp_path):
    weights = np.full((20, 20), 0.25)
    picture = np.full((20, 20, 3), (10, 200, 30), np.uint8)
    figure = draw_strips(
        [Strip("", [Panel("a", picture), Panel("b", weights), None])], "T $x$", "s", [("c", (9, 9, 9))]
    )
    pixels = np.asarray(figure)
    for colour, least in ((picture[0, 0], 200 * 200), (heat(np.array([0.25]))[0], 200 * 200), ((9, 9, 9), 150)):
        assert (pixels == colour).all(-1).sum() >= least
    assert (pixels == heat(np.ones(1))).all(-1).any()  # the bar reaches from 0 to 1, whatever is shown
    assert (pixels == heat(np.zeros(1))).all(-1).any()
    without = draw_strips([Strip("n", [Panel("a", picture)])], "T", "s")
    assert not (np.asarray(without) == heat(np.ones(1))).all(-1).any()
    wide = np.asarray(draw_strips([Strip("", [Panel("", np.full((10, 100, 3), 7, np.uint8))])], "T", ""))
    assert (wide == 7).all(-1).sum() == 20 * 200  # keeps its proportions
    save_png(figure, tmp_path / "a.png", "words")
    save_png(figure, tmp_path / "b.png", "words")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "words"


def test_a_weight_map_is_shown_on_its_own_span_which_stands_below(monkeypatch):
    weights = np.linspace(0.30, 0.38, 400).reshape(20, 20)
    assert own_span(weights) == (pytest.approx(0.30), pytest.approx(0.38))
    assert own_span(np.array([[0.5, 0.504]])) == (
        pytest.approx(0.492),
        pytest.approx(0.512),
    )  # rounding makes no pattern
    assert own_span(np.array([[0.0, 1.0]])) == FLAT
    assert heat(np.array([0.30, 0.38]), (0.30, 0.38)).tolist() == heat(np.array([0.0, 1.0])).tolist()
    own, flat = (
        draw_strips([Strip("", [Panel("b", weights, span), Panel("c", weights)])], "T", "s")
        for span in (own_span(weights), FLAT)
    )
    assert own.height == flat.height + 16  # the line with the span
    left = np.asarray(own)[:, :200]
    assert (left == heat(np.zeros(1))).all(-1).any()
    assert (left == heat(np.ones(1))).all(-1).any()
    assert not (np.asarray(flat)[:, :200] == heat(np.ones(1))).all(-1).any()
    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, line, *a: written.append(line) or text(self, at, line, *a)
    )
    draw_strips([Strip("", [Panel("b", weights, own_span(weights))])], "T", "s")
    assert {"0.30 to 0.38", "low", "high"} <= set(written)


def test_colours():
    few, voc = class_colours(7), class_colours(21)
    assert len({tuple(colour) for colour in few[:7]}) == 7
    assert voc[15].tolist() == [192, 128, 128]  # VOC's person
    assert few[255].tolist() == voc[255].tolist() == [255, 255, 255]
    image, label = np.full((1, 2, 3), 100, np.uint8), np.array([[0, 15]], np.uint8)
    assert overlay(image, label, voc, 0.5).tolist() == [[[100, 100, 100], [146, 114, 114]]]
