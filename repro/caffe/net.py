"""A net built from its prototxt as Caffe builds it: pycaffe's `Net` over torch tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from caffe_weights import Message
from caffe_weights.files.caffemodel import write_caffemodel
from repro.caffe import inplace
from repro.caffe.blobs import Blobs
from repro.caffe.bounds import Bounds
from repro.caffe.build import Step, build, read_net
from repro.caffe.fuse import Fused
from repro.caffe.fuse import fuse as fuse_steps
from repro.caffe.graph import State
from repro.caffe.layers import Context, Layer
from repro.caffe.layers.shape import copies
from repro.caffe.params import Learnable, copy_weights, share
from repro.data.caffe_rng import MAX_DRAW, CaffeRNG


def _slots(plan: Sequence[Step | Fused]) -> tuple[list[list], dict[int, int]]:
    """Names what each step reads: a value, or where several read it (value, reader), in the order of the plan; and counts the readers of each value.

    What a kernel reads that stands for several layers is not split: its gradients are summed as autograd does, since Caffe has no such order.
    """
    readers: dict[int, int] = {}
    for step in plan:
        for value in step.bottoms:
            readers[value] = readers.get(value, 0) + 1
    whole = {value for step in plan if isinstance(step, Fused) for value in step.bottoms}
    seen: dict[int, int] = {}
    slots = []
    for step in plan:
        slots.append([])
        for value in step.bottoms:
            reader = seen.get(value, 0)
            seen[value] = reader + 1
            slots[-1].append(value if readers[value] == 1 or value in whole else (value, reader))
    return slots, {value: 1 if value in whole else number for value, number in readers.items()}


class Net(nn.Module):
    """A net.

    Args:
        prototxt: The file, or a NetParameter that caffe_weights.parse_prototxt read.
        weights: Caffe models to copy parameters from, one after the other; none keeps the fillers'.
        phase: "TEST" or "TRAIN"; with `level` and `stages` the NetState that include and exclude rules ask for.
        stages, level: See `phase`.
        defines: Values of the ${VAR}s that DeepLab's scripts fill in.
        fuse: Whether layers that one of our kernels computes together are joined (repro/caffe/fuse.py).
        allow_large: Whether blobs may be larger than repro/caffe/bounds.py allows.
        device: Of parameters and blobs.
        dtype: Of parameters and blobs.
        root: The folder that relative paths in the prototxt start from; by default the current one, as Caffe's.
        seed: Caffe's random_seed: of the generator that fillers, Dropout and data layers draw from, in the net's order. Without one it comes from torch.
        rng: That generator itself, where a solver has it already.
        log: Takes each line that says something of the result.

    Attributes:
        name: Of the net.
        layers: Layer name to layer, in order.
        blobs: Blob name to its tensor of the last forward pass, see Blobs. An input's may be written to.
        params: Layer name to its parameters, of layers that have any; a shared one is the owner's object.
        learnable: Every parameter that a layer owns.
        inputs, outputs: Names of blobs that are set from outside, and of those that no layer takes, sorted.
        rng: Caffe's generator. generator: torch's, of the fillers whose numbers are not Caffe's.
        watch: Where it is set, it is given every step of a pass, with its bottoms and what computes its tops, and computes these (`caffe time`).

    Raises:
        FileNotFoundError, ValueError: The prototxt or the weights are unusable; one line that names file, line and layer.

    Caffe: src/caffe/net.cpp.
    """

    def __init__(
        self,
        prototxt: str | os.PathLike | Message,
        weights: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        phase: str = "TEST",
        *,
        stages: Sequence[str] = (),
        level: int = 0,
        defines: Mapping[str, str] | None = None,
        fuse: bool = True,
        allow_large: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        root: Path | None = None,
        seed: int | None = None,
        rng: CaffeRNG | None = None,
        log: Callable[[str], None] = lambda line: None,
    ):
        super().__init__()
        if phase not in ("TRAIN", "TEST"):
            raise ValueError(f'Net: phase must be "TRAIN" or "TEST"; got {phase!r}; choose one')
        if seed is None:
            seed = int(torch.randint(0, MAX_DRAW, ()))
        self.rng = rng or CaffeRNG(seed)
        self.phase, self.device, self.dtype, self._log = phase, torch.device(device or "cpu"), dtype, log
        param = read_net(prototxt, defines)
        state = State(phase, level or param.state.level, (*stages, *param.state.stage))
        self.bounds = Bounds(allow_large, torch.empty((), dtype=dtype).element_size(), training=phase == "TRAIN")
        self.generator = torch.Generator().manual_seed(seed)
        self._context = context = Context(phase, self.rng, root or Path(), self.bounds.add, self.generator, dtype, log)
        made = build(param, state, context)
        self.name, self.inputs, self.outputs = param.name, made.inputs, made.outputs
        self._made = made
        kept = {made.names[name] for name in made.outputs} | {value for value, _ in made.losses}
        self._plan = fuse_steps(made.steps, kept, log) if fuse else list(made.steps)
        self._slots, self._readers = _slots(self._plan)
        self.modules_in_order = nn.ModuleList(step.layer for step in made.steps)
        self.layers: dict[str, Layer] = {step.layer.name: step.layer for step in made.steps}
        self.learnable: list[Learnable] = share(self.modules_in_order, param.force_backward)
        self.force_backward = param.force_backward
        self.watch: Callable[[Step | Fused, list[torch.Tensor], Callable[..., tuple]], tuple] | None = None
        self._inputs = {
            name: self._placed(torch.zeros(made.shapes[value]))
            for name, value in zip(self.inputs, made.input_values, strict=True)
        }
        self.to(device=self.device, dtype=dtype)
        for learnable in self.learnable:
            if learnable.tensor.dim() == 4:
                learnable.tensor.data = learnable.tensor.data.to(memory_format=torch.channels_last)
        self._loss: list[tuple[torch.Tensor, float]] = []
        for path in [weights] if isinstance(weights, (str, os.PathLike)) else weights or ():
            self.copy_from(path)

    @property
    def params(self) -> dict[str, list[nn.Parameter]]:
        """Layer name to its parameters, of layers that have any."""
        return {name: list(layer.blobs) for name, layer in self.layers.items() if len(layer.blobs)}

    @property
    def loss_weights(self) -> dict[str, float]:
        """What each output counts in the loss; 0 of those that count nothing."""
        weights = dict(self._made.losses)
        return {name: weights.get(self._made.names[name], 0.0) for name in self.outputs}

    def listed_layers(self) -> list[tuple[str, str, list[nn.Parameter]]]:
        """Lists name, type and parameters of every layer as Caffe's model files do, with the splits that it puts behind blobs of several readers.

        Caffe: src/caffe/util/insert_splits.cpp, InsertSplits and SplitLayerName.
        """
        listed: list[tuple[str, str, list[nn.Parameter]]] = []
        _, readers = _slots(self._made.steps)

        def split(blob: str, layer: str, place: int, value: int, weights: Sequence[float] = ()) -> None:
            counts = place < len(weights) and weights[place] != 0
            if readers.get(value, 0) + counts > 1:
                listed.append((f"{blob}_{layer}_{place}_split", "Split", []))

        for place, (name, value) in enumerate(zip(self.inputs, self._made.input_values, strict=True)):
            split(name, "input", place, value)
        for step in self._made.steps:
            layer = step.layer
            listed.append((layer.name, layer.type, list(layer.blobs)))
            for place, (name, value) in enumerate(zip(layer.param.top, step.tops, strict=False)):
                split(name, layer.name, place, value, layer.param.loss_weight)
        return listed

    def set_inputs(self, **inputs: torch.Tensor) -> None:
        """Sets inputs for the passes to come, as a solver's step makes them; see `forward`."""
        for name, given in inputs.items():
            if name not in self._inputs:
                raise ValueError(
                    f"Net.forward: an input must be one of {', '.join(self.inputs) or 'none'}; got {name!r}; see the prototxt"
                )
            value = torch.as_tensor(given).to(device=self.device, dtype=self.dtype)
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            self._inputs[name] = value

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Computes all blobs.

        Args:
            inputs: By name; one that is left out keeps its last value, at first zeros. Another shape than the prototxt's reshapes the net.

        Returns:
            The output blobs by name.

        Raises:
            ValueError: A name, shape, label or file does not fit.
        """
        self.set_inputs(**inputs)
        values: dict = {}  # by value, and by (value, reader) where several read it
        for name, index in zip(self.inputs, self._made.input_values, strict=True):
            given = self._inputs[name]
            if self.force_backward and not given.requires_grad:
                given = (
                    given.detach().requires_grad_()
                )  # a new leaf: a pass's gradient replaces the last one's, as Caffe's does
            self._store(values, index, given)
        for step, slots in zip(self._plan, self._slots, strict=True):
            bottoms = [values[slot] for slot in slots]
            compute = partial(self._run, step, values=values) if isinstance(step, Step) else step.compute
            tops = compute(bottoms) if self.watch is None else self.watch(step, bottoms, compute)
            if step.in_place:
                values.pop(step.bottoms[0], None)  # overwritten: nobody can ask for it
            for index, top in zip(step.tops, tops, strict=True):
                self._store(values, index, top)
        self.blobs = Blobs(self._made, values)
        self._loss = [(values[index], weight) for index, weight in self._made.losses]
        return {name: self.blobs[name] for name in self.outputs}

    def _run(self, step: Step, bottoms: list[torch.Tensor], values: dict) -> tuple[torch.Tensor, ...]:
        """Runs one layer, reshaped where its bottoms' shapes have changed."""
        layer = step.layer
        bottoms = [x if need else x.detach() for x, need in zip(bottoms, step.need, strict=True)]
        shapes = [tuple(bottom.shape) for bottom in bottoms]
        if shapes != step.shapes and not layer.DATA:
            for shape in layer.reshape(shapes):
                self.bounds.check(shape, layer.param.where)
            step.shapes = shapes
        if layer.DATA:
            return tuple(self._placed(top) for top in layer(bottoms))
        if step.seen is None or not bottoms[0].requires_grad or not torch.is_grad_enabled():
            return layer(bottoms)
        cell = inplace.Cell()
        values.setdefault("cells", {}).setdefault(step.seen, []).append(cell)
        return inplace.run(layer, bottoms[0], cell, step.in_place)

    def _placed(self, top: torch.Tensor) -> torch.Tensor:
        top = top.to(device=self.device, dtype=self.dtype)
        return top.contiguous(memory_format=torch.channels_last) if top.dim() == 4 else top

    def _store(self, values: dict, index: int, value: torch.Tensor) -> None:
        """Keeps a value, with a copy for each of its readers, and tells it to layers whose gradient asks what it was in the end."""
        values[index] = value
        for cell in values.get("cells", {}).get(index, ()):
            cell.final = value.detach()
        readers = self._readers.get(index, 0)
        if readers > 1:
            values.update(((index, reader), x) for reader, x in enumerate(copies(value, readers)))

    def loss(self) -> torch.Tensor:
        """Returns the loss of the last forward pass: every top times its loss_weight, summed; a float64 scalar, 0 where the net has no loss."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for top, weight in self._loss:
            total = total + (top.double() * weight).sum()
        return total

    def backward(self) -> None:
        """Adds the gradients of the loss to the parameters' grad, as Caffe's Backward adds to diff."""
        roots = [(top, weight) for top, weight in self._loss if top.requires_grad]
        if roots:
            tops, weights = zip(*roots, strict=True)
            torch.autograd.backward(tops, [torch.full_like(t, w) for t, w in zip(tops, weights, strict=True)])
        for learnable in self.learnable:
            tensor = learnable.tensor
            if tensor.requires_grad and tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)

    def clear_param_diffs(self) -> None:
        """Forgets the gradients (Caffe: Net::ClearParamDiffs); call it before an iteration's first pass."""
        for learnable in self.learnable:
            learnable.tensor.grad = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Net:
        """Moves inputs with the parameters, in `to`, `double` and so on; blobs are as before a pass."""
        super()._apply(fn, recurse)
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        self.device, self.dtype = moved.device, moved.dtype
        self._context.dtype = moved.dtype
        self._inputs = {name: fn(value.detach()) for name, value in self._inputs.items()}
        self.blobs = self._unset_blobs()
        return self

    def _unset_blobs(self) -> Blobs:
        """Returns the blobs as they are before a pass."""
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        values = {value: zero.expand(shape) for value, shape in self._made.shapes.items()}
        return Blobs(self._made, values | dict(zip(self._made.input_values, self._inputs.values(), strict=True)))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the parameters as a .caffemodel, with the layers that Caffe's has.

        Caffe: pycaffe, Net_Save; Net::ToProto.
        """
        layers = {
            name: (kind, [blob.detach().cpu().numpy() for blob in blobs]) for name, kind, blobs in self.listed_layers()
        }
        write_caffemodel(path, layers, self.name)

    def copy_from(self, weights: str | os.PathLike) -> None:
        """Copies the parameters of a .caffemodel or .caffemodel.h5, matched by layer name; layers that it lacks keep theirs, each with a line in the log.

        Raises:
            FileNotFoundError, ValueError: The file is unusable, a layer has another number of blobs, or a blob another shape.

        Caffe: Net::CopyTrainedLayersFrom.
        """
        copied = copy_weights(self.modules_in_order, weights, self._log)
        for name in dict.fromkeys(
            one.layer for one in self.learnable
        ):  # those that share all their parameters have their owners' values
            if name not in copied:
                self._log(f"Layer {name} keeps its values: {weights} has no such layer")
