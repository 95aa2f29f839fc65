"""Damaged files: what disks, networks, editors and attackers make of a good one, by a seed."""

from __future__ import annotations

import os
import random
from pathlib import Path

PAGE = 512


def mutated(good: bytes, seed: int) -> bytes:
    """Damages a file's bytes in one of eleven ways, which the seed chooses."""
    dice = random.Random(seed)
    content = bytearray(good)
    place = dice.randrange(len(content))
    kind = seed % 11
    if kind == 0:
        content[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        content = content[:place]
    elif kind == 2:
        content += dice.randbytes(dice.choice((1, 7, 4096)))
    elif kind == 3:
        content[place : place + PAGE] = bytes(len(content[place : place + PAGE]))
    elif kind == 4:
        other = dice.randrange(len(content))
        content[place : place + PAGE], content[other : other + PAGE] = (
            content[other : other + PAGE],
            content[place : place + PAGE],
        )
    elif kind == 5:
        del content[place : place + dice.randint(1, PAGE)]
    elif kind == 6:
        content[place:place] = dice.randbytes(dice.randint(1, 9))
    elif kind == 7:
        for _ in range(20):
            content[dice.randrange(len(content))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 8:
        content = bytearray(dice.randbytes(len(content)))
    elif kind == 9:  # lengths and counts stand near the front
        for _ in range(3):
            content[dice.randrange(min(96, len(content)))] = dice.randrange(256)
    else:
        content = bytearray(dice.choice((b"", b"\0", b"\n", b"{", b"\x80\x04.", b"PK\x03\x04", b"%!PS-Adobe-3.0\n")))
    return bytes(content)


def special(path: Path, kind: str) -> None:
    """Puts what is no regular file where one is expected."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "nowhere": "/nowhere"}[kind])


SPECIAL = ("pipe", "directory", "device", "loop", "nowhere")
