"""Masks of elements to write: what a caller gave, and those of a layer's units. They touch no parameter's memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from fastinit.distributed.held import is_sharded, local_tensor
from fastinit.distributed.shards import is_dtensor, local_boxes
from fastinit.errors import ParameterError
from fastinit.run.index_maps import box_of
from fastinit.run.memory import check_readable
from fastinit.run.targets import Target, begin_of


def check_mask(name: str, tensor: torch.Tensor, mask: object) -> None:
    """Raise ParameterError unless `mask` is a mask for all elements of a parameter, with memory."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ParameterError(name, f"expected a mask of torch.bool, got {given}")
    try:
        check_readable(mask, name)
    except ParameterError as error:
        raise ParameterError(name, f"its mask: {error.problem}") from None
    if mask.shape != tensor.shape:
        raise ParameterError(name, f"expected a mask of shape {tuple(tensor.shape)}, got {tuple(mask.shape)}")
    if is_sharded(tensor) and not is_dtensor(tensor):
        raise ParameterError(name, "is sharded, and no DTensor: no mask can tell which of its elements are meant")
    device = local_tensor(tensor).device
    if local_tensor(mask).device != device:
        raise ParameterError(name, f"expected a mask on {device}, got one on {local_tensor(mask).device}")
    if is_dtensor(mask) and not (
        is_dtensor(tensor) and (mask.device_mesh, mask.placements) == (tensor.device_mesh, tensor.placements)
    ):
        raise ParameterError(name, "expected a plain mask, or a DTensor with the parameter's mesh and placements")


def masks_of(name: str, tensor: torch.Tensor, mask: torch.Tensor, targets: Sequence[Target]) -> list[torch.Tensor]:
    """The part of a mask for each target of a parameter, which are its boxes in order."""
    if is_dtensor(mask):
        local = local_tensor(mask)
        return [box_of(local, box.local, box.shape) for box in local_boxes(mask, name)]
    return [box_of(mask, begin_of(target), target.tensor.shape) for target in targets]


class Weight(NamedTuple):
    """What is known of a parameter: its shape, the class of its module, whether the plan writes it, and in how many
    groups its module computes."""

    shape: torch.Size | None
    kind: str
    written: bool
    groups: int = 1

    def axes(self) -> tuple[int, int]:
        """The dimensions of outputs and of inputs."""
        return (1, 0) if self.kind.startswith("ConvTranspose") or self.kind == "Conv1D" else (0, 1)


Masks = list[tuple[str, torch.Tensor]]


def masks_of_units(
    weights: Mapping[str, Weight], units: Mapping[str, Sequence[int]], outgoing: Mapping[str, str | Sequence[str]]
) -> tuple[Masks, Masks]:
    """Names and masks (on the CPU) of what is written anew, and of what becomes zero. See Plan.run_units_.

    Raises:
        ValueError: `outgoing` does not name the layers of `units`.
        ParameterError: a layer or a unit that is not there, or a weight that does not fit.
    """
    for what, given in (("units", units), ("outgoing", outgoing)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{what}: expected a mapping from names of layers, got {type(given).__name__}")
    if set(outgoing) != set(units):
        raise ValueError(
            f"outgoing: expected the layers that read the output of each of {sorted(units)} (or () for none), got them "
            f"for {sorted(outgoing)}"
        )
    anew: Masks = []
    zeroed: Masks = []
    for layer, numbers in units.items():
        name, weight = _weight_of(layer, weights)
        if not weight.written:
            raise ParameterError(name, "its units cannot be reset, for the plan does not write it")
        of_outputs = weight.axes()[0]
        if weight.groups > 1 and of_outputs == 1:
            raise ParameterError(name, f"its units cannot be reset: each column is that of {weight.groups} units")
        chosen = _chosen(layer, numbers, _sizes(name, weight)[of_outputs])
        anew.append((name, _along(chosen, of_outputs, weight)))
        bias = weights.get(_own(layer, "bias"))
        if bias is not None and bias.written:
            if bias.shape != chosen.shape:
                got = tuple(bias.shape or ())
                raise ParameterError(_own(layer, "bias"), f"expected shape ({len(chosen)},), one a unit, got {got}")
            anew.append((_own(layer, "bias"), chosen))
        readers = outgoing[layer]
        readers = [readers] if isinstance(readers, str) else readers
        if not isinstance(readers, Sequence) or not all(isinstance(each, str) for each in readers):
            raise TypeError(f"outgoing: expected names of layers for {layer!r}, got {readers!r}")
        for reader in readers:
            name, weight = _weight_of(reader, weights)
            of_inputs = weight.axes()[1]
            if weight.groups > 1:
                raise ParameterError(name, f"reads its inputs in {weight.groups} groups; expected a layer without")
            inputs = _sizes(name, weight)[of_inputs]
            if inputs % len(chosen) != 0:
                raise ParameterError(
                    name,
                    f"has {inputs} inputs, not a multiple of the {len(chosen)} units of {layer}, whose output it reads",
                )
            zeroed.append((name, _along(chosen.repeat_interleave(inputs // len(chosen)), of_inputs, weight)))
    return anew, zeroed


def _own(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _weight_of(layer: str, weights: Mapping[str, Weight]) -> tuple[str, Weight]:
    name = _own(layer, "weight")
    if name not in weights:
        raise ParameterError(name, f"the plan has no such parameter, so {layer!r} is no layer with units")
    return name, weights[name]


def _sizes(name: str, weight: Weight) -> torch.Size:
    if weight.shape is None or len(weight.shape) < 2 or weight.shape.numel() == 0:
        raise ParameterError(name, f"expected the weight of a linear map, got shape {tuple(weight.shape or ())}")
    return weight.shape


def _chosen(layer: str, numbers: Iterable[int], width: int) -> torch.Tensor:
    chosen = torch.zeros(width, dtype=torch.bool, device="cpu")
    if isinstance(numbers, torch.Tensor):
        is_of_integers = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
        if numbers.dim() != 1 or not is_of_integers or numbers.is_meta:
            what = f"a tensor of {numbers.dtype} and shape {tuple(numbers.shape)} on {numbers.device}"
            raise ParameterError(layer, f"expected numbers of units, in one dimension, got {what}")
        numbers = numbers.tolist()
    if isinstance(numbers, (str, bytes)) or not isinstance(numbers, Iterable):
        raise ParameterError(layer, f"expected numbers of units, got {numbers!r}")
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise ParameterError(layer, f"expected numbers of units, got {number!r}")
        if not 0 <= number.__index__() < width:
            raise ParameterError(layer, f"expected units 0 to {width - 1}, got {number}")
        chosen[number.__index__()] = True
    return chosen


def _along(chosen: torch.Tensor, dim: int, weight: Weight) -> torch.Tensor:
    """A mask of a weight's shape that is the same along all other dimensions, without memory for them."""
    assert weight.shape is not None
    return chosen.view([-1 if at == dim else 1 for at in range(len(weight.shape))]).expand(weight.shape)
