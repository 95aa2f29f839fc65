"""Articulated people of six parts, in many poses, builds, views and clothes, painted on a Canvas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from repro.data.synthetic.canvas import PATTERNS, Canvas, Paint, Point, grid_round, polar

CLASS_NAMES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")
HEAD, TORSO, UPPER_ARMS, LOWER_ARMS, UPPER_LEGS, LOWER_LEGS = range(1, 7)

SKIN_TONES = (
    (246, 214, 188),
    (232, 190, 158),
    (214, 168, 130),
    (190, 138, 100),
    (158, 108, 74),
    (124, 80, 54),
    (92, 58, 40),
    (68, 44, 32),
)

Range = tuple[float, float]


class Pose(NamedTuple):
    """Ranges of joint angles in degrees: 0 hangs down; positive leads outwards (frontal view) or forwards (profile)."""

    near_thigh: Range
    far_thigh: Range
    near_knee: Range
    far_knee: Range
    upper_arm: Range
    elbow: Range
    lean: Range


POSES = (
    Pose((0, 10), (0, 10), (-6, 6), (-6, 6), (4, 25), (0, 35), (-5, 5)),  # standing
    Pose((4, 22), (4, 22), (-10, 10), (-10, 10), (20, 70), (-110, 40), (-8, 8)),  # standing wide, hands busy
    Pose((12, 38), (-35, -8), (-20, 0), (-45, -5), (-35, 45), (10, 60), (-4, 12)),  # walking
    Pose((35, 80), (-40, 0), (-100, -30), (-90, -10), (-60, 70), (50, 110), (5, 25)),  # running
    Pose((60, 95), (55, 95), (-100, -60), (-100, -60), (10, 60), (10, 90), (-10, 12)),  # sitting
    Pose((70, 120), (60, 110), (-150, -90), (-140, -80), (20, 80), (0, 90), (0, 30)),  # crouching
    Pose((0, 18), (0, 18), (-10, 10), (-10, 10), (110, 175), (-30, 60), (-8, 8)),  # arms raised
    Pose((0, 45), (0, 45), (-40, 10), (-40, 10), (70, 125), (-50, 50), (-15, 15)),  # reaching
)


class Outfit(NamedTuple):
    """The surface of every part of one person."""

    skin: Paint
    hair: Paint
    torso: Paint
    upper_arm: Paint
    lower_arm: Paint
    upper_leg: Paint
    lower_leg: Paint
    shoe: Paint


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Returns an RGB colour, (3,) float32, 0..255: greys, muted and vivid colours of any lightness."""
    grey = rng.uniform(15, 245)
    colour = grey + rng.uniform(0, 1) * (rng.uniform(0, 255, 3) - grey)
    return colour.astype(np.float32)


def skin_colour(rng: np.random.Generator) -> np.ndarray:
    """Returns an RGB skin colour, (3,) float32, 0..255."""
    tone = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))], np.float32)
    return np.clip(tone * np.float32(rng.uniform(0.85, 1.12)) + rng.uniform(-8, 8, 3).astype(np.float32), 0, 255)


def random_cloth(rng: np.random.Generator, unit: float) -> Paint:
    """Returns a cloth: half of all cloths are plain.

    Args:
        rng: the source of chance.
        unit: the wearer's height in pixels, to which the pattern's period is in proportion.
    """
    pattern = PATTERNS[rng.integers(len(PATTERNS))] if rng.random() < 0.5 else "plain"
    period = max(1.5, unit * rng.uniform(0.015, 0.06))
    return Paint(pattern, random_colour(rng), random_colour(rng), period, rng.uniform(0.2, 0.5))


def random_outfit(rng: np.random.Generator, unit: float) -> Outfit:
    """Returns clothes: sleeves and legs of any length, dresses and overalls, bare torsos.

    Args:
        rng: the source of chance.
        unit: the wearer's height in pixels.
    """
    skin_tone = skin_colour(rng)
    skin = Paint("plain", skin_tone, skin_tone, 1, rng.uniform(0.25, 0.5))
    top, bottom, hair, shoe = (random_cloth(rng, unit) for _ in range(4))
    if rng.random() < 0.7:
        dark = np.float32(rng.uniform(0.1, 1)) * np.array((150, 105, 60), np.float32)
        hair = Paint("mottled", dark, dark * np.float32(0.7), max(1.5, unit * 0.01), 0.3)
    if rng.random() < 0.2:
        bottom = top
    sleeve, trouser = rng.random(), rng.random()
    return Outfit(
        skin=skin,
        hair=hair,
        torso=skin if rng.random() < 0.07 else top,
        upper_arm=skin if sleeve < 0.2 else top,
        lower_arm=skin if sleeve < 0.6 else top,
        upper_leg=skin if trouser < 0.12 else bottom,
        lower_leg=skin if trouser < 0.4 else bottom,
        shoe=shoe,
    )


def draw_person(canvas: Canvas, rng: np.random.Generator, anchor: Point, height: float, owner: int) -> None:
    """Paints one person.

    Args:
        canvas: the picture.
        rng: the source of chance: pose, view, build and clothes.
        anchor: (y, x) of the middle of the body (between hip and waist), pixels.
        height: the height in pixels the person has when standing upright.
        owner: the person's number, greater than those of the people drawn before.
    """
    pose = POSES[rng.integers(len(POSES))]
    outfit = random_outfit(rng, height)
    profile = rng.random() < 0.45
    facing = 1 if rng.random() < 0.5 else -1
    bulk = rng.uniform(0.9, 1.3)
    roll = rng.uniform(-8, 8) if rng.random() < 0.92 else rng.uniform(60, 120) * facing
    trunk = 180 + roll - facing * rng.uniform(*pose.lean)

    hip = polar(anchor, 0.06 * height, roll)
    neck = polar(hip, 0.31 * height, trunk)
    shoulders = polar(neck, 0.035 * height, trunk + 180)
    shoulder_half, hip_half = (0.08, 0.066) if profile else (0.115, 0.075)
    body = _Body(canvas, outfit, height, bulk, owner)

    def leg(side: int, thigh_range: Range, knee_range: Range) -> None:
        forwards = facing if profile else side
        thigh = roll + forwards * rng.uniform(*thigh_range)
        shin = thigh + forwards * rng.uniform(*knee_range)
        # Seen from the front a raised thigh points at the viewer and looks short.
        short = 1 if profile else rng.uniform(0.75, 1)
        joint = polar(hip, (0.02 if profile else 0.05) * height * bulk, roll + 90 * side)
        body.leg(joint, thigh, shin, short, forwards)

    def arm(side: int) -> None:
        # In profile the arms swing against each other.
        forwards = facing if profile else side
        upper = roll + forwards * rng.uniform(*pose.upper_arm) * (side * facing if profile else 1)
        lower = upper + forwards * rng.uniform(*pose.elbow)
        out = shoulder_half * (0.3 if profile else 1) * height * bulk
        body.arm(polar(shoulders, out, roll + 90 * side), upper, lower, rng.uniform(0.8, 1.05))

    arms_behind = rng.random() < 0.3
    if profile or arms_behind:
        arm(-facing)
    leg(-facing, pose.far_thigh, pose.far_knee)
    leg(facing, pose.near_thigh, pose.near_knee)
    if arms_behind:
        arm(facing)
    body.trunk(hip, neck, shoulder_half, hip_half)
    body.head(neck, trunk + rng.uniform(-14, 14), facing if profile else 0, from_behind=rng.random() < 0.2)
    if not profile and not arms_behind:
        arm(-facing)
    if not arms_behind:
        arm(facing)


class _Body:
    """One person's measures and surfaces; every method paints one part."""

    def __init__(self, canvas: Canvas, outfit: Outfit, height: float, bulk: float, owner: int) -> None:
        self.canvas, self.outfit, self.height, self.owner = canvas, outfit, height, owner
        self.thick = grid_round(height * bulk)

    def _limb(self, start: Point, end: Point, radii: Range, paint: Paint, part: int) -> None:
        self.canvas.limb(start, end, (radii[0] * self.thick, radii[1] * self.thick), paint, part, self.owner)

    def leg(self, top: Point, thigh: float, shin: float, short: float, toes: int) -> None:
        knee = polar(top, 0.235 * self.height * short, thigh)
        ankle = polar(knee, 0.215 * self.height, shin)
        self._limb(knee, ankle, (0.06, 0.047), self.outfit.lower_leg, LOWER_LEGS)
        toe = polar(ankle, 0.065 * self.height, shin + 70 * toes)
        self._limb(ankle, toe, (0.045, 0.038), self.outfit.shoe, LOWER_LEGS)
        self._limb(top, knee, (0.072, 0.06), self.outfit.upper_leg, UPPER_LEGS)

    def arm(self, shoulder: Point, upper: float, lower: float, length: float) -> None:
        elbow = polar(shoulder, 0.175 * self.height * length, upper)
        wrist = polar(elbow, 0.16 * self.height * length, lower)
        self._limb(elbow, wrist, (0.05, 0.043), self.outfit.lower_arm, LOWER_ARMS)
        hand = polar(wrist, 0.035 * self.height, lower)
        self._limb(hand, hand, (0.046, 0.046), self.outfit.skin, LOWER_ARMS)
        self._limb(shoulder, elbow, (0.053, 0.049), self.outfit.upper_arm, UPPER_ARMS)

    def trunk(self, hip: Point, neck: Point, shoulder_half: float, hip_half: float) -> None:
        widths = shoulder_half * self.thick, hip_half * self.thick
        self.canvas.slab(neck, hip, widths, 0.05 * self.thick, self.outfit.torso, TORSO, self.owner)
        self._limb(hip, hip, (hip_half, hip_half), self.outfit.upper_leg, UPPER_LEGS)

    def head(self, neck: Point, up: float, looking: int, from_behind: bool) -> None:
        chin = polar(neck, 0.055 * self.height, up)
        crown = polar(chin, 0.05 * self.height, up)
        self._limb(neck, chin, (0.035, 0.03), self.outfit.skin, TORSO)
        self._limb(chin, crown, (0.05, 0.058), self.outfit.skin, HEAD)
        if from_behind:
            self._limb(chin, crown, (0.05, 0.06), self.outfit.hair, HEAD)
            return
        dark = Paint("plain", self.outfit.hair.first * np.float32(0.3), self.outfit.hair.second, 1, 0)
        for side in (-1, 1):
            eye = polar(polar(chin, 0.03 * self.height, up), (0.022 * side - 0.03 * looking) * self.thick, up + 90)
            self._limb(eye, eye, (0.009, 0.009), dark, HEAD)
        mouth = polar(chin, -0.015 * self.height, up)
        ends = [polar(mouth, 0.015 * side * self.thick, up + 90) for side in (-1, 1)]
        self._limb(*ends, (0.007, 0.007), dark, HEAD)
        top = polar(crown, 0.02 * self.height, up)
        ends = [polar(top, 0.03 * side * self.thick, up + 90) for side in (-1, 1)]
        self._limb(*ends, (0.045, 0.045), self.outfit.hair, HEAD)
