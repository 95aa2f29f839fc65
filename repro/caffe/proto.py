"""The messages of caffe.proto that this program knows: a prototxt's fields are checked against them, with file and line.

The table holds BVLC's messages and those of the DeepLab forks (v1: hole, strict_dim, softmaxloss_param; v2: Interp, DomainTransform, DenseCRF and so on).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from caffe_weights import Message
from caffe_weights.nets.prototxt import Word
from repro.caffe.proto_table import ENUMS, FIRST, MESSAGES

INT32 = (-(2**31), 2**31 - 1)
RANGES = {
    "int32": INT32,
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}


class Field:
    """A field of a message: its kind (a scalar type, an enum or a message), its default, and whether it is repeated."""

    def __init__(self, text: str):
        match = re.fullmatch(r"(\w+)=(\w+)(\*?)(?::(.*))?", text)
        self.name, self.kind, repeated, default = match.groups()
        self.repeated = bool(repeated)
        self.default = None if default is None else _default(self.kind, default)


def _default(kind: str, text: str):
    if kind == "bool":
        return text == "true"
    if kind in RANGES:
        return int(text)
    if kind == "float":
        return float32(float(text))
    return "" if text == '""' else text


def float32(value: float) -> float:
    """Rounds a number to float32, as a message's `float` field holds it."""
    return float(np.float32(value))


@cache
def fields(kind: str) -> dict[str, Field]:
    """Returns the known fields of a message."""
    return {field.name: field for field in map(Field, MESSAGES[kind].split())}


class Typed:
    """A message whose fields have been checked; an attribute is a field's value, its default, or a list where it is repeated.

    Attributes:
        kind: The message's name in caffe.proto.
        where: "<file>: line <n>", for errors.
        set: The names of the fields that the file gives.
    """

    def __init__(self, kind: str, values: dict, where: str):
        self.kind, self.where, self.set = kind, where, frozenset(values)
        self._values = values

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        field = fields(self.kind).get(name)
        if field is None:
            raise AttributeError(f"{self.kind} has no field {name}")
        if field.repeated:
            return []
        if field.kind in MESSAGES:
            return Typed(field.kind, {}, self.where)
        return field.default

    def has(self, name: str) -> bool:
        """Whether the file gives the field."""
        return name in self.set


def typed(message: Message, kind: str, file: str) -> Typed:
    """Checks a message and everything in it.

    Args:
        message: As caffe_weights.parse_prototxt gave it, upgraded to the present format.
        kind: Its name in caffe.proto, e.g. "NetParameter".
        file: For errors.

    Raises:
        ValueError: A field is unknown, has a wrong type, or is given twice though it is not repeated where that could hide a mistake.

    Deviates: text format lets an optional field be given once only; so does this.
    """
    known, values = fields(kind), {}
    for name, given in message.items():
        lines = message.lines.get(name) or [message.line] * len(given)
        place = f"{file}: line {lines[0]}"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}"
            raise ValueError(f"{place}: a field of {kind} must be one of Caffe's; got {name!r}; {hint}")
        field = known[name]
        if not field.repeated and len(given) > 1:
            raise ValueError(
                f"{file}: line {lines[-1]}: {kind}.{name} must be given once; got {len(given)} values; keep one"
            )
        read = [_value(value, field, kind, file, line) for value, line in zip(given, lines, strict=True)]
        values[name] = read if field.repeated else read[0]
    return Typed(kind, values, f"{file}: line {message.line}")


def _value(value, field: Field, kind: str, file: str, line: int):
    where = f"{file}: line {line}: {kind}.{field.name}"
    expected = f"a {field.kind}"
    if field.kind in MESSAGES:
        if isinstance(value, Message):
            return typed(value, field.kind, file)
        expected = "a message, { ... }"
    elif field.kind in ENUMS:
        words = ENUMS[field.kind].split()
        if isinstance(value, Word) and value in words:
            return str(value)
        place = value - FIRST.get(field.kind, 0) if type(value) is int else -1
        if 0 <= place < len(words):
            return words[place]
        expected = f"one of {', '.join(words)}"
    elif field.kind == "string":
        if isinstance(value, str) and not isinstance(value, Word):
            return value
        expected = "a quoted string"
    elif field.kind == "bool":
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        if isinstance(value, Word) and value in ("t", "f", "True", "False"):
            return value in ("t", "True")
        expected = "true or false"
    elif field.kind == "float":
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max):
                return float32(value)
            expected = "a finite float32"
    else:
        low, high = RANGES[field.kind]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        expected = f"a whole number from {low} to {high}"
    shown = "a message" if isinstance(value, Message) else repr(value)[:60]
    raise ValueError(f"{where}: must be {expected}; got {shown}; correct the prototxt")


def pairs(values: Sequence, count: int, default):
    """Returns the given values of a list that may leave out its end, filled up to `count` with the default."""
    return [*values, *[default] * (count - len(values))][:count]
