"""The synthetic stand-in for PASCAL-Person-Part: the painter, the people, the pictures."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from repro.data.synthetic import people as synthetic_people
from repro.data.synthetic.canvas import DISTRACTOR, PATTERNS, Canvas, Paint, polar
from repro.data.synthetic.dataset import draw_scenes
from repro.data.synthetic.people import draw_person
from repro.data.synthetic.scene import draw_scene

WHITE = np.full(3, 255, np.float32)
BLACK = np.zeros(3, np.float32)


def generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def flat(pattern: str = "plain", period: float = 4.0, shading: float = 0.0) -> Paint:
    return Paint(pattern, WHITE, BLACK, period, shading)


def test_polar_starts_downwards_and_turns_right():
    assert polar((10, 10), 8, 0) == (18, 10)
    assert polar((10, 10), 8, 90) == (10, 18)
    assert polar((10, 10), 8, 180) == (2, 10)


def test_limb_without_length_is_a_disc():
    canvas = Canvas((41, 41))
    canvas.limb((20, 20), (20, 20), (10, 10), flat(), 1)
    y, x = np.mgrid[:41, :41] - 20
    np.testing.assert_array_equal(canvas.part == 1, np.sqrt(y * y + x * x) <= 10)
    # The anti-aliased outline keeps the area.
    assert canvas.rgb[..., 0].sum() / 255 == pytest.approx(np.pi * 100, rel=2e-3)


def test_limb_tapers_and_has_round_ends():
    canvas = Canvas((41, 61))
    canvas.limb((20, 10), (20, 50), (8, 2), flat(), 2)
    columns = (canvas.part == 2).sum(0)
    assert columns[10] == 17
    assert columns[30] == 11
    assert columns[50] == 5
    assert columns[0] == 0
    assert columns[53] == 0
    assert columns[52] == 1


def test_slab_is_a_tapered_bar_with_cut_corners():
    canvas = Canvas((41, 41))
    canvas.slab((5, 20), (35, 20), (10, 10), 0, flat(), 3)
    np.testing.assert_array_equal(np.argwhere(canvas.part == 3)[[0, -1]], [[5, 10], [35, 30]])
    assert (canvas.part == 3).sum() == 31 * 21
    tapered, rounded = Canvas((41, 41)), Canvas((41, 41))
    tapered.slab((5, 20), (35, 20), (10, 4), 0, flat(), 3)
    assert ((tapered.part == 3).sum(1)[[5, 20, 35]] == [21, 15, 9]).all()
    rounded.slab((5, 20), (35, 20), (10, 10), 5, flat(), 3)
    y, x = np.mgrid[:5, :5]
    np.testing.assert_array_equal(rounded.part[5:10, 10:15] == 3, np.hypot(5 - y, 5 - x) <= 5)
    assert rounded.part[5, 20] == rounded.part[20, 10] == 3


def test_patterns_show_both_colours_and_shading_darkens_the_outline():
    along, across = np.mgrid[:32, :32].astype(np.float32)
    middle = np.zeros_like(along)
    means = {p: flat(p).colours(along, across, middle).mean() / 255 for p in PATTERNS}
    assert means["plain"] == 1
    assert all(0.2 < mean < 0.9 for pattern, mean in means.items() if pattern != "plain")
    hoops = flat("hoops").colours(along, across, middle)[..., 0]
    np.testing.assert_array_equal(hoops[:, 0], np.where(np.arange(32) // 4 % 2, 0, 255))
    np.testing.assert_array_equal(hoops, flat("stripes").colours(along, across, middle)[..., 0].T)
    assert flat(shading=0.5).colours(along, across, middle + 1).max() == 127.5


def test_what_is_drawn_outside_the_picture_leaves_no_trace():
    canvas = Canvas((20, 20))
    canvas.limb((-30, 5), (-20, 8), (5, 5), flat(), 1)
    canvas.slab((50, 50), (60, 60), (5, 5), 1, flat(), 1)
    assert not canvas.part.any()
    assert not canvas.rgb.any()


def test_label_has_a_ring_of_one_pixel_around_and_between_people():
    canvas = Canvas((20, 30))
    canvas.slab((5, 8), (15, 8), (4, 4), 0, flat(), 2, owner=1)
    canvas.slab((5, 16), (15, 16), (4, 4), 0, flat(), 3, owner=2)
    canvas.slab((5, 26), (15, 26), (2, 2), 0, flat(), DISTRACTOR)
    label = canvas.label()
    assert label[10].tolist() == [0] * 3 + [255] + [2] * 7 + [255] + [3] * 9 + [255] + [0] * 8
    assert label[:, 8].tolist() == [0] * 4 + [255] + [2] * 11 + [255] + [0] * 3
    assert label[4, 3] == 0, "the ring joins neighbours by sides, not by corners"


@pytest.mark.parametrize("pose", range(len(synthetic_people.POSES)))
def test_every_pose_shows_all_six_parts(pose, monkeypatch):
    monkeypatch.setattr(synthetic_people, "POSES", synthetic_people.POSES[pose : pose + 1])
    shares = []
    for seed in range(12):
        canvas = Canvas((200, 200))
        draw_person(canvas, generator(seed), (100, 100), 120, owner=1)
        shares.append([(canvas.part == part).mean() for part in range(1, 7)])
        assert set(np.unique(canvas.owner)) == {0, 1}
    assert (np.median(shares, axis=0) * 200 * 200 > 0.004 * 120 * 120).all()


def test_people_stand_on_their_legs():
    above = []
    for seed in range(40):
        canvas = Canvas((200, 200))
        draw_person(canvas, generator(seed), (100, 100), 120, owner=1)
        rows = {part: np.argwhere(canvas.part == part)[:, 0].mean() for part in (1, 2, 5)}
        above.append(rows[1] < rows[2] < rows[5])
    assert 0.8 < np.mean(above) < 1, "most people are upright, some are not"


def test_a_person_is_as_tall_as_asked(monkeypatch):
    monkeypatch.setattr(synthetic_people, "POSES", synthetic_people.POSES[:1])
    tall = []
    for seed in range(40):
        canvas = Canvas((300, 300))
        draw_person(canvas, generator(seed), (150, 150), 200, owner=1)
        rows = np.flatnonzero(canvas.owner.any(1))
        tall.append(rows[-1] - rows[0])
    assert np.median(tall) == pytest.approx(200, rel=0.06)


def test_colours_do_not_tell_parts():
    """A part's mean colour varies from person to person more than the mean colours of the parts differ."""
    colours = []
    for seed in range(60):
        canvas = Canvas((160, 160))
        draw_person(canvas, generator(7, seed), (80, 80), 100, owner=1)
        colours.append(
            [
                canvas.rgb[canvas.part == part].mean(0) if (canvas.part == part).any() else [np.nan] * 3
                for part in range(1, 7)
            ]
        )
    colours = np.array(colours)
    between_people, between_parts = np.nanstd(colours, axis=0).mean(), np.nanmean(colours, axis=0).std(axis=0).mean()
    assert between_people > 2 * between_parts


def test_scenes_are_lively():
    scenes = list(itertools.islice(draw_scenes((3,), 60, (97, 121)), 60))
    labels = np.stack([scene.label for scene in scenes])
    assert scenes[0].image.shape == (97, 121, 3)
    assert scenes[0].image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {*range(7), 255}
    shares = np.array([(labels == value).mean() for value in range(7)])
    assert 0.5 < shares[0] < 0.92
    assert (shares[1:] > 0.005).all()
    people = np.array([(scene.label % 255 > 0).mean() for scene in scenes])
    assert people.min() < 0.02
    assert people.max() > 0.4
    assert np.mean([scene.distractor.any() for scene in scenes]) > 0.9
    assert all((scene.label[scene.distractor] % 255 == 0).all() for scene in scenes)
    distractors = np.stack([scene.distractor for scene in scenes])
    assert 0.15 < distractors[labels == 0].mean() < 0.5


def test_number_and_heights_of_people_are_kept():
    scene = draw_scene(generator(1), (161, 161), heights=(0.1, 0.12), people=(1, 1))
    rows = np.flatnonzero((scene.label % 255 > 0).any(1))
    assert rows[-1] - rows[0] < 0.2 * 161


# Of the pixels, not of the files: PNG compression differs between builds of zlib.
PIXELS = "3cd62bc228ee2f8cec5709d78a1360c5e1370de881036429fc101d14f0b5d891"


def test_a_seed_draws_these_very_pixels():
    digest = hashlib.sha256()
    for scene in draw_scenes((2016, 0), 6, (65, 81)):
        digest.update(scene.image.tobytes() + scene.label.tobytes() + scene.distractor.tobytes())
    assert digest.hexdigest() == PIXELS, "a pixel changed: raise repro.data.synthetic.VERSION and update PIXELS"
