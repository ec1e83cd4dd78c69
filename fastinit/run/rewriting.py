"""Writes to tensors that keep some of what they hold: blends with initial values, and writes to some elements alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastinit.errors import ParameterError
from fastinit.run import engine
from fastinit.run.index_maps import box_of
from fastinit.run.orthogonal import compute_dtype
from fastinit.run.scratch import pieces, staged
from fastinit.run.targets import PARTS, Target, begin_of


def check_blends(target: Target) -> None:
    """Raise ParameterError unless the target's dtype has products and sums."""
    if not (target.dtype.is_floating_point or target.dtype in PARTS):
        raise ParameterError(target.name, f"expected a floating-point or complex dtype to blend, got {target.dtype}")


@torch.no_grad()
def blend(program: engine.Program, keep: float, scale: float, seed: int) -> None:
    """keep * element + scale * value for all targets of a program, rounded once (docs/STREAM.md, section 8).

    On the CPU and on CUDA devices the native code does it in one pass. Values for other devices, and those that are
    computed from whole tensors or come from torch, are staged.
    """
    others = program.blend_in_place(keep, scale, seed)
    each = ((piece, None) for target in others for piece in pieces(target, program.backend))
    for target, _, values in staged(each, program.backend, seed, unrounded=True):
        tensor = target.tensor.detach()
        if target.dtype in PARTS:  # both parts by themselves: a product with a complex factor would mix them
            tensor, values = torch.view_as_real(tensor), torch.view_as_real(values)
        dtype = compute_dtype(tensor.dtype)
        # Two products and a sum, each rounded, as the native code has them.
        tensor.copy_((tensor.to(dtype) * keep).add_(values.to(dtype) * scale))


@torch.no_grad()
def write_where(masked: Sequence[tuple[Target, torch.Tensor]], backend: str, seed: int) -> None:
    """Write the values of targets where masks of their tensors' shapes are true. Their memory has been checked."""
    for target, mask, values in staged(_masked_pieces(masked, backend), backend, seed):
        tensor = target.tensor.detach()
        tensor.copy_(torch.where(mask, values, tensor))


def _masked_pieces(
    masked: Sequence[tuple[Target, torch.Tensor]], backend: str
) -> Iterator[tuple[Target, torch.Tensor]]:
    for target, mask in masked:
        begin = begin_of(target)
        for piece in pieces(target, backend):
            within = [first - of_all for first, of_all in zip(begin_of(piece), begin, strict=True)]
            of_piece = box_of(mask, within, piece.tensor.shape)
            if bool(of_piece.any()):
                yield piece, of_piece
