"""The table for the native code: a structured array with a row for each tensor, or several where one is not enough."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastinit import _native
from fastinit.errors import ParameterError
from fastinit.run.index_maps import index_maps
from fastinit.run.progress import Meter
from fastinit.run.streams import name_id
from fastinit.run.targets import PARTS, Target, indices_of_tensor, parts_of, sampled_blocks

# csrc/core/task.h
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
    torch.float8_e4m3fnuz: 6,
    torch.float8_e5m2fnuz: 7,
}
_PADDING = tuple((0.0,) * (5 - length) for length in range(6))
# csrc/core/prepare.h
_PREPARE_ERRORS = {
    1: "no value of {dtype} lies within {distribution}",
    2: "{distribution} lies more than 6 sigma to one side of its mean; float32 cannot sample so far out",
}


class Table:
    """Rows of the native Task struct, ready for sampling.

    Raises:
        ValueError: naming the tensor whose distribution cannot be sampled in its dtype.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        owners: list[Target] = []
        numbers: list[int] = []
        rows: list[bytes] = []
        pack = _task_struct().pack
        known: dict[int, tuple[Any, ...]] = {}  # the last fields, by the id of a distribution
        for number, target, address, index_map in _parts(targets):
            if address % 8 and address % (itemsize := target.tensor.element_size()):
                raise ParameterError(
                    target.name,
                    f"its memory begins at an address that is not a multiple of the {itemsize} bytes of an element; "
                    "clone() it first",
                )
            distribution: Any = target.distribution  # all of them sampled
            of_distribution = known.get(id(distribution))
            if of_distribution is None:
                parameters = distribution.parameters()
                of_distribution = (*parameters, *_PADDING[len(parameters)]), distribution.code
                known[id(distribution)] = of_distribution
            parameters, code = of_distribution
            rows.append(pack(address, *index_map, name_id(target.name), *parameters, DTYPES[target.tensor.dtype], code))
            owners.append(target)
            numbers.append(number)
        table = np.frombuffer(bytearray().join(rows), dtype=_task_dtype())
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].dtype, distribution=owners[row].distribution)
            raise ParameterError(owners[row].name, reason)
        table.setflags(write=False)
        self.rows = table
        self._targets = targets
        self.owners = owners  # of the rows
        self._numbers = numbers  # of the rows: of the targets, from which the owners are cut

    def fill_cpu(self, seed: int, threads: int, meter: Meter | None = None) -> None:
        """Write all values, to tensors in the memory of the CPU. The interpreter's lock is released meanwhile.

        The table does not change, so any number of threads may run it at the same time.
        """
        for rows, _ in self._pieces(meter):
            _module().fill_cpu(rows, seed, threads)

    def blend_cpu(self, keep: float, scale: float, seed: int, threads: int) -> None:
        """keep * element + scale * value for all tensors, which are in the memory of the CPU."""
        _module().blend_cpu(self.rows, keep, scale, seed, threads)

    def fill_where_cpu(self, mask_addresses: NDArray[np.uint64], seed: int, threads: int) -> None:
        """`fill_cpu` for the elements whose byte in a mask is 1."""
        _module().fill_where_cpu(self.rows, mask_addresses, seed, threads)

    def mask_addresses(self, masks: Sequence[torch.Tensor]) -> NDArray[np.uint64]:
        """For each row, the address of the byte of its first element, in the mask of its target (see `mask_like`)."""
        addresses = np.empty(len(self.rows), dtype=np.uint64)
        for row, (number, owner) in enumerate(zip(self._numbers, self.owners, strict=True)):
            target = self._targets[number].tensor
            offset = (int(self.rows["data"][row]) - target.data_ptr()) // owner.tensor.element_size()
            addresses[row] = masks[number].data_ptr() + offset
        return addresses

    def differs_cpu(self, seed: int, threads: int, meter: Meter | None = None) -> NDArray[np.bool_]:
        """Whether each row's elements have other bits than `fill_cpu` would write. Nothing is written."""
        differs = np.zeros(len(self.rows), dtype=np.bool_)
        for rows, at in self._pieces(meter):
            differs[at] |= _module().differs_cpu(rows, seed, threads).astype(np.bool_)
        return differs

    def distances_cpu(self, seed: int, threads: int) -> NDArray[np.float64]:
        """Five numbers for each row, in float64: the sums of w^2, v^2, w v and (w - v)^2, and the largest |w - v|.

        w are the row's elements, v the values that `fill_cpu` would write.
        """
        distances: NDArray[np.float64] = _module().distances_cpu(self.rows, seed, threads)
        return distances

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return int(self._sizes().sum())

    def _sizes(self) -> NDArray[np.int64]:
        """The bytes of each row's elements."""
        sizes: NDArray[np.int64] = self.rows["numel"] * _itemsizes()[self.rows["dtype"]]
        return sizes

    def _pieces(self, meter: Meter | None) -> Iterator[tuple[NDArray[np.void], slice]]:
        """The rows and their positions. Without a meter: all at once. With one: a few at a time, with as many bytes as
        the meter asks for; it is advanced after each piece. A larger row of consecutive elements is cut."""
        if meter is None:
            yield self.rows, slice(None)
            return
        ends, begin = np.cumsum(self._sizes()), 0
        while begin < len(ends):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + meter.piece_bytes, "right")))
            nbytes = int(ends[end - 1]) - before
            if end == begin + 1 and nbytes > meter.piece_bytes:
                for part, part_bytes in _cut(self.rows[begin:end], meter):
                    yield part, slice(begin, end)
                    meter.advance(part_bytes)
            else:
                yield self.rows[begin:end], slice(begin, end)
                meter.advance(nbytes)
            begin = end


# Parts of a row begin at a multiple of the elements that a thread takes at a time (csrc/cpu/parallel.h).
_CLAIM = 2**19


def _cut(row: NDArray[np.void], meter: Meter) -> Iterator[tuple[NDArray[np.void], int]]:
    """Parts of one row, and their bytes: the row itself, unless all its elements lie one behind the other."""
    numel, itemsize = int(row["numel"][0]), int(_itemsizes()[row["dtype"][0]])
    if row["row_length"][0] != numel or row["element_memory_step"][0] != 1:
        yield row, numel * itemsize
        return
    begin = 0
    while begin < numel:
        count = min(numel - begin, max(1, meter.piece_bytes // itemsize // _CLAIM) * _CLAIM)
        part = row.view(np.uint8).copy().view(row.dtype)  # with what `prepare` has set, which has no names here
        part["data"] += begin * itemsize
        part["global_offset"] += begin
        part["numel"] = part["row_length"] = count
        yield part, count * itemsize
        begin += count


@cache
def _itemsizes() -> NDArray[np.int64]:
    """Of the dtypes by their numbers."""
    return np.array([dtype.itemsize for dtype in sorted(DTYPES, key=DTYPES.__getitem__)], dtype=np.int64)


def _module() -> Any:
    assert _native.module is not None, "a table is made only where the native code is there"
    return _native.module


@cache
def _task_dtype() -> np.dtype[np.void]:
    dtype: np.dtype[np.void] = np.dtype(_module().task_dtype())
    return dtype


def mask_like(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A mask whose bytes lie as the elements of a tensor do, or as their real and imaginary parts.

    A mask that lies so already is returned itself.
    """
    if tensor.dtype in PARTS:
        tensor = torch.view_as_real(tensor)
        mask = mask.unsqueeze(-1).expand(tensor.shape)
    if lies_as(tensor, mask):
        return mask
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.bool, device=tensor.device).copy_(mask)


def lies_as(tensor: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the bytes of a mask lie as the elements of a tensor of real numbers do."""
    if tensor.dtype in PARTS:
        return False
    steps = zip(tensor.shape, tensor.stride(), mask.stride(), strict=True)
    return all(size == 1 or step == of_mask for size, step, of_mask in steps)


def _parts(targets: Sequence[Target]) -> Iterator[tuple[int, Target, int, tuple[int, ...]]]:
    """For each row: the number of its target, whose elements it has, the address of the first one, and the fields from
    `numel` on that say where the others are."""
    for number, target in enumerate(targets):
        tensor = target.tensor
        is_complex = tensor.dtype in PARTS
        is_whole = target.indices is None and target.begin is None and tensor.is_contiguous() and not is_complex
        if is_whole and target.distribution.blocks() is None:
            numel = tensor.numel()
            yield (
                number,
                target,
                tensor.data_ptr(),
                (numel, 0, numel, 1, 0, 0, 1, 0, 0),
            )  # one row of consecutive elements
            continue
        blocks = sampled_blocks(target)
        for block in [part for each in blocks for part in parts_of(each)] if is_complex else blocks:
            for data_offset, *index_map in index_maps(block.tensor, indices_of_tensor(block)):
                address = block.tensor.data_ptr() + data_offset * block.tensor.element_size()
                yield number, block, address, tuple(index_map)


_CODES = {"u8": "Q", "i8": "q", "V16": "16s", "5f8": "5d", "i4": "i"}


@cache
def _task_struct() -> struct.Struct:
    """A row of the table: fields that are set here, one after the other, and room for those that `prepare` sets."""
    layout = _module().task_dtype()
    fields = "=" + "".join(_CODES[each] for each in layout["formats"])
    return struct.Struct(f"{fields}{layout['itemsize'] - struct.calcsize(fields)}x")
