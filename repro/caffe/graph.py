"""Which layers a net has in a phase, and which blob each reads and writes: Caffe's FilterNet and InsertSplits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from repro.caffe.proto import Typed


@dataclass(frozen=True)
class State:
    """A NetState: what include and exclude rules ask for."""

    phase: str
    level: int = 0
    stages: tuple[str, ...] = ()

    def meets(self, rule: Typed) -> bool:
        """Whether a NetStateRule is met. Caffe: Net::StateMeetsRule."""
        return not (
            (rule.has("phase") and rule.phase != self.phase)
            or (rule.has("min_level") and self.level < rule.min_level)
            or (rule.has("max_level") and self.level > rule.max_level)
            or any(stage not in self.stages for stage in rule.stage)
            or any(stage in self.stages for stage in rule.not_stage)
        )


def included(layers: Sequence[Typed], state: State) -> list[Typed]:
    """Returns the layers that are in the net in a state.

    Raises:
        ValueError: A layer has both include and exclude rules.

    Caffe: Net::FilterNet.
    """
    kept = []
    for layer in layers:
        if layer.include and layer.exclude:
            raise ValueError(
                f"{layer.where}: layer {layer.name!r}: it must have include rules or exclude rules; got both; keep one kind"
            )
        keep = any(map(state.meets, layer.include)) if layer.include else not any(map(state.meets, layer.exclude))
        if keep:
            kept.append(layer)
    return kept


@dataclass
class Value:
    """One version of a blob: an in-place layer makes a new version under the old name.

    name: The blob's; "" for a top that Caffe adds by itself.
    producer: Index of the layer that makes it, -1 for an input of the net.
    readers: (layer index, bottom index) of its consumers, in order.
    in_place: Whether it overwrites its producer's bottom.
    """

    name: str
    producer: int
    readers: list[tuple[int, int]] = field(default_factory=list)
    in_place: bool = False


@dataclass
class Wiring:
    """The blobs of a net.

    values: All versions, in the order in which they are made.
    bottoms, tops: Of each layer, the indices of the values that it reads and writes.
    inputs: The values that are set from outside.
    outputs: Names of the blobs that no layer takes, sorted, as Caffe has them.
    """

    values: list[Value] = field(default_factory=list)
    bottoms: list[list[int]] = field(default_factory=list)
    tops: list[list[int]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def wire(layers: Sequence[Typed], inputs: Sequence[str], automatic: Callable[[Typed], int], where: str) -> Wiring:
    """Connects layers by the names of their blobs.

    Args:
        layers: In order.
        inputs: Names of the net's inputs.
        automatic: Tells how many tops Caffe adds to a layer.
        where: The net's file and line, for errors.

    Raises:
        ValueError: A bottom is unknown, or two layers make a top; in place counts as such where another layer reads the blob before it is overwritten.

    Caffe: Net::AppendBottom, AppendTop; src/caffe/util/insert_splits.cpp.
    """
    net = Wiring()
    current: dict[str, int] = {}

    def make(name: str, producer: int, in_place: bool = False) -> int:
        net.values.append(Value(name, producer, in_place=in_place))
        if name:
            current[name] = len(net.values) - 1
        return len(net.values) - 1

    for name in inputs:
        if name in current:
            raise ValueError(f"{where}: its inputs must have names of their own; got {name!r} twice; rename one")
        net.inputs.append(make(name, -1))
    for index, layer in enumerate(layers):
        place_of = f"{layer.where}: layer {layer.name!r}"
        bottoms, tops = [], []
        for place, name in enumerate(layer.bottom):
            if name not in current:
                raise ValueError(
                    f"{place_of}: bottom {place} must be a top of an earlier layer or an input; got unknown blob {name!r}; correct the prototxt"
                )
            net.values[current[name]].readers.append((index, place))
            bottoms.append(current[name])
        for place, name in enumerate(layer.top):
            in_place = place < len(layer.bottom) and layer.bottom[place] == name
            shared = in_place and len(net.values[bottoms[place]].readers) > 1
            if shared or (name in current and not in_place):
                reason = (
                    "is read by another layer, so it cannot be overwritten in place" if shared else "exists already"
                )
                raise ValueError(
                    f"{place_of}: a blob must be the top of one layer; got {name!r}, which {reason}; rename it"
                )
            tops.append(make(name, index, in_place))
        tops += [make("", index) for _ in range(automatic(layer))]
        net.bottoms.append(bottoms)
        net.tops.append(tops)
    for name, index in current.items():
        later = net.values[index].readers
        if not later:
            net.outputs.append(name)
    net.outputs.sort()
    return net
