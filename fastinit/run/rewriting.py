"""Writes to tensors that keep some of what they hold: blends with initial values, and writes to some elements alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastinit._torch import increment_version
from fastinit.errors import ParameterError
from fastinit.run import engine
from fastinit.run.cuda import CudaTable
from fastinit.run.exact import safe_threads
from fastinit.run.index_maps import box_of, boxes
from fastinit.run.orthogonal import compute_dtype
from fastinit.run.scratch import SCRATCH_BYTES, pieces, staged
from fastinit.run.table import Table, lies_as, mask_like
from fastinit.run.targets import PARTS, Target, begin_of

Masked = tuple[Target, torch.Tensor]


def check_blends(target: Target) -> None:
    """Raise ParameterError unless the target's dtype has products and sums."""
    if not (target.dtype.is_floating_point or target.dtype in PARTS):
        raise ParameterError(target.name, f"expected a floating-point or complex dtype to blend, got {target.dtype}")


@torch.no_grad()
@safe_threads()
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
@safe_threads()
def write_where(masked: Sequence[Masked], backend: str, seed: int) -> None:
    """Write the values of targets where masks of their tensors' shapes are true. Their memory has been checked.

    On the CPU and on CUDA devices the native code does it in one pass. Other values are staged, as in `blend`.
    """
    in_place: dict[torch.device, list[Masked]] = {}
    others: list[Masked] = []
    for target, mask in masked:
        if engine.fills_in_place(target, backend):
            in_place.setdefault(target.device, []).append((target, mask))
        else:
            others.append((target, mask))
    for device, of_device in in_place.items():
        try:
            for batch in _batches(of_device):
                _write_in_place(batch, device, seed)
        finally:  # an interrupted pass has written something, too
            increment_version([target.tensor for target, _ in of_device])
    for target, mask, values in staged(_masked_pieces(others, backend), backend, seed):
        tensor = target.tensor.detach()
        tensor.copy_(torch.where(mask, values, tensor))


def _write_in_place(batch: Sequence[Masked], device: torch.device, seed: int) -> None:
    table = Table([target for target, _ in batch])
    addresses = table.mask_addresses([mask for _, mask in batch])
    if device.type == "cuda":
        CudaTable(table, device).fill_where(addresses, seed)
    else:
        table.fill_where_cpu(addresses, seed, torch.get_num_threads())


def _batches(masked: Sequence[Masked]) -> Iterator[list[Masked]]:
    """Targets with masks that lie as their tensors do. Masks that were given so are used as they are. Other masks are
    copied for boxes of the tensors, as many at a time as fit into the scratch memory.
    """
    batch: list[Masked] = []
    nbytes = 0
    for target, mask in masked:
        if mask.numel() == 0:
            continue
        if lies_as(target.tensor, mask):
            batch.append((target, mask))
            continue
        for piece, of_piece in _boxes_in_memory(target, mask):
            like = mask_like(piece.tensor, of_piece)
            size = like.untyped_storage().nbytes()
            if nbytes + size > SCRATCH_BYTES and batch:
                yield batch
                batch, nbytes = [], 0
            batch.append((piece, like))
            nbytes += size
    if batch:
        yield batch


def _boxes_in_memory(target: Target, mask: torch.Tensor) -> Iterator[Masked]:
    """Boxes that lie together in memory: cut along the dimensions with the largest steps."""
    tensor = target.tensor.detach()
    steps = tensor.stride()
    in_order = sorted(range(tensor.dim()), key=lambda dim: -steps[dim])
    for begin_in_order, shape_in_order in boxes([tensor.shape[dim] for dim in in_order], SCRATCH_BYTES):
        begin, shape = [0] * tensor.dim(), [0] * tensor.dim()
        for dim, first, size in zip(in_order, begin_in_order, shape_in_order, strict=True):
            begin[dim], shape[dim] = first, size
        if shape == list(tensor.shape):
            yield target, mask
            return
        at = tuple(first + offset for first, offset in zip(begin_of(target), begin, strict=True))
        yield target._replace(tensor=box_of(tensor, begin, shape), begin=at), box_of(mask, begin, shape)


def _masked_pieces(masked: Sequence[Masked], backend: str) -> Iterator[Masked]:
    for target, mask in masked:
        begin = begin_of(target)
        for piece in pieces(target, backend):
            within = [first - of_all for first, of_all in zip(begin_of(piece), begin, strict=True)]
            of_piece = box_of(mask, within, piece.tensor.shape)
            if bool(of_piece.any()):
                yield piece, of_piece
