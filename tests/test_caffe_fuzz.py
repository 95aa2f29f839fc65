"""Mutated prototxts: whatever stands in them, a net is built and run, or one line says what is wrong."""

from __future__ import annotations

import random
import re
from functools import cache

import numpy as np
import pytest
from caffe_nets import text
from conftest import GOLDEN

from caffe_weights import parse_prototxt
from repro.caffe import Net
from repro.caffe.layers import TYPES
from repro.caffe.proto_table import ENUMS, MESSAGES

NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "255",
    "1e9",
    "-0.5",
    "0.3",
    "nan",
    "inf",
    "2147483647",
    "4294967295",
    "1e-45",
    "99999999999999999999",
]
WORDS = [word for words in ENUMS.values() for word in words.split()] + [
    "true",
    "false",
    "CONVOLUTION",
    "POOLING",
    "${VAR}",
]
FIELDS = sorted({field.split("=")[0] for fields in MESSAGES.values() for field in fields.split()})
KINDS = [f'"{kind}"' for kind in [*TYPES, "Python", "Data", "Pose", ""]]
TOKEN = re.compile(r'"[^"]*"|[\w.+\-]+|[{}:\[\]]')
COST = 10**7  # multiplications that a forward pass may take here


@cache
def seeds() -> list[list[str]]:
    """Tokenises every net of the layer cases, and nets of the older formats."""
    from test_caffe_upgrade import V0, V1

    with np.load(GOLDEN / "layers.npz") as arrays:
        texts = [str(arrays[f"{name}/prototxt"]) for name in arrays["case_names"]]
    texts += [V0, V1.replace("${NUM_LABELS}", "5")] * 8
    return [TOKEN.findall(each) for each in texts]


def mutated(choose: random.Random) -> str:
    """Changes one to three tokens of a net, or takes some of another."""
    tokens = list(choose.choice(seeds()))
    for _ in range(choose.randint(1, 3)):
        kind = choose.random()
        wanted = '"' if kind < 0.2 else "-.0123456789" if kind < 0.6 else ""
        place = choose.choice([i for i, token in enumerate(tokens) if not wanted or token[0] in wanted] or [0])
        if wanted:
            texts = KINDS if choose.random() < 0.5 else ['"x"', '"y"', '"m"', '"label"', '"a"']
            tokens[place] = choose.choice(texts if wanted == '"' else NUMBERS)
        elif kind < 0.7:
            del tokens[place : place + choose.choice((1, 1, 2, 5))]
        elif kind < 0.8:
            tokens[place:place] = tokens[place : place + choose.choice((1, 3, 12))]
        elif kind < 0.9:
            other = choose.choice(seeds())
            start = choose.randrange(len(other))
            tokens[place:place] = other[start : start + choose.randint(1, 20)]
        elif kind < 0.97:
            tokens[place] = choose.choice(FIELDS + WORDS)
        else:
            tokens[place] = "".join(chr(choose.randint(1, 255)) for _ in range(3))
        tokens = tokens or ["{"]
    return " ".join(tokens)


def cost(net: Net) -> int:
    """Estimates the multiplications of a forward pass."""
    total = 0
    for step in net._made.steps:
        sizes = [int(np.prod(shape)) for shape in step.shapes]
        weights = max((blob.numel() for blob in step.layer.blobs), default=1)
        total += sum(sizes) * (1 + weights)
    return total


def attempt(body: str, phase: str) -> tuple[str, str]:
    """Builds and, if that is cheap, runs a net; returns how far it came, and what was said."""
    try:
        net = Net(parse_prototxt(body, "fuzz"), phase=phase, seed=1)
    except (ValueError, FileNotFoundError) as error:
        return "refused", str(error)
    if cost(net) > COST:
        return "built", ""
    try:
        net()
        net.backward()
    except (ValueError, FileNotFoundError) as error:
        return "stopped", str(error)
    return "ran", ""


def fuzz(number: int, seed: int, monkeypatch, tmp_path) -> dict[str, int]:
    """Attempts that many mutated nets, in a folder of their own; returns how many came how far."""
    monkeypatch.setattr("repro.caffe.bounds.memory_bound", lambda: 2**26)
    monkeypatch.chdir(tmp_path)
    reached = dict.fromkeys(("refused", "built", "stopped", "ran"), 0)
    for i in range(number):
        choose = random.Random(f"{seed}/{i}")
        body, phase = mutated(choose), choose.choice(("TRAIN", "TEST"))
        try:
            how, said = attempt(body, phase)
            reached[how] += 1
            assert "\n" not in said
            assert how == "ran" or how == "built" or said.startswith("fuzz: line "), said
        except Exception as error:
            error.add_note(f"mutation {seed}/{i}, {phase}:\n{body}")
            raise
    return reached


def test_mutated_nets(monkeypatch, tmp_path):
    reached = fuzz(300, 0, monkeypatch, tmp_path)
    assert reached["refused"] > 100
    assert reached["ran"] > 15
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_many_mutated_nets(monkeypatch, tmp_path):
    assert sum(fuzz(100_000, 1, monkeypatch, tmp_path).values()) == 100_000


def test_a_whole_net_with_any_one_token_gone():
    """Of the largest file, every 97th token is left out in turn."""
    tokens = TOKEN.findall(text("net_thin_att3_e.prototxt"))
    for place in range(0, len(tokens), 97):
        how, said = attempt(" ".join(tokens[:place] + tokens[place + 1 :]), "TRAIN")
        assert how == "built" or said.startswith("fuzz: line ")
        assert "\n" not in said
