"""Haar distributed orthogonal matrices as products of random Householder reflectors, without any factorisation.

Let x_j be m - j + 1 independent normals for j = 1 ... n <= m, H_j the reflector of coordinates j ... m that takes x_j
to a multiple of the first axis, and d_j minus the sign of the first entry of x_j. Then H_1 H_2 ... H_n diag(d), cut to
its first n columns, is Haar distributed (Stewart 1980, section 3; Mezzadri 2007, section 6): it has the law of the Q of
a Gaussian matrix's QR factorisation. The reflectors of a panel act together as I - V T V^T, where T is upper triangular
and T^-1 has v_j.v_j / 2 on its diagonal and V^T V above it (compact WY: Schreiber, Van Loan 1989; the inverse: Puglisi
1992).

The vectors come from a source of random values: on the CPU panel by panel, so that only the result is ever whole in
memory. On a GPU, the vectors of many panels are drawn at once. Every step that one panel can take without the others is
done at once, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from fastinit.distributed.shards import Interval
from fastinit.run.index_maps import BoxIndices
from fastinit.run.progress import Meter
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Normal

_NORMAL = Normal(0.0, 1.0)
# Matrices of one shape are computed together, as many as fit into this. A larger one is computed alone, in its place.
WORKSPACE_BYTES = 2**23
# A GPU needs more work at a time than a cache holds. With less, launching a product takes longer than the product. On
# a GPU the panels are counted, too: those of all matrices in work, or as many of a single one's as fit.
CUDA_WORKSPACE_BYTES = 2**28
# The most reflectors in a panel: enough for products to run at full speed, few enough for the work within a panel to
# stay small beside them. A triangular factor wider than 2 STRIP is multiplied in strips of STRIP, without most zeros.
PANEL = 192
LEAST = 64
STRIP = 64


class Source(Protocol):
    """Where normals come from."""

    def fill_all(self, targets: Sequence[Target]) -> None: ...


class Matrix(NamedTuple):
    """A box of a matrix of `shape`, to write into `tensor`, which may have any shape of as many elements.

    The box has the intervals `rows` and `columns`, and its elements go to the tensor's in row-major order. Element
    (i, j) of the matrix owns the random number whose index `indices` gives.
    """

    name: str
    tensor: torch.Tensor
    shape: tuple[int, int]
    indices: BoxIndices
    gain: float
    rows: Interval | None = None  # None: all
    columns: Interval | None = None

    def row_interval(self) -> Interval:
        return self.rows or (0, self.shape[0])

    def column_interval(self) -> Interval:
        return self.columns or (0, self.shape[1])

    def box_shape(self) -> tuple[int, int]:
        (row, end_row), (column, end_column) = self.row_interval(), self.column_interval()
        return end_row - row, end_column - column


class _Tall(NamedTuple):
    """The matrix, or its transpose where it has more columns than rows."""

    name: str
    rows: int
    columns: int
    offset: int
    row_step: int
    column_step: int


def _tall(matrix: Matrix) -> tuple[_Tall, bool]:
    (rows, columns), (row_step, column_step) = matrix.shape, matrix.indices.strides
    if rows >= columns:
        return _Tall(matrix.name, rows, columns, matrix.indices.offset, row_step, column_step), False
    return _Tall(matrix.name, columns, rows, matrix.indices.offset, column_step, row_step), True


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32; complex dtypes as they are."""
    if dtype.is_complex:
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def workspace_bytes(device: torch.device) -> int:
    """How many bytes of results a batch of matrices may have; where panels are made in groups, with its panels."""
    return CUDA_WORKSPACE_BYTES if device.type == "cuda" else WORKSPACE_BYTES


def makes_groups(device: torch.device) -> bool:
    """Whether panels are made in groups: where calls are dear and memory is not. The CPU needs neither."""
    return device.type == "cuda"


@torch.no_grad()
def fill(matrices: Sequence[Matrix], source: Source, meter: Meter | None = None) -> None:
    """Write all matrices, those of one shape together.

    Memory beyond the results: `workspace_bytes`, and a panel of PANEL columns for each matrix in work. Where
    `makes_groups`, the workspace has room for the panels, unless one panel is larger. A matrix in float16 or bfloat16,
    or with strides that no matrix has, is computed in a copy.

    A box needs all reflectors. Apart from them it costs its share of the whole matrix. Rows of a tall matrix (columns
    of a wide one) cost up to three halves of their share, and memory for rows that are as long as the matrix is tall.

    Raises:
        ValueError: a box that does not lie within its matrix.
    """
    groups: dict[tuple[object, ...], list[Matrix]] = {}
    for matrix in matrices:
        _check_interval("rows", matrix.rows, matrix.shape[0])
        _check_interval("columns", matrix.columns, matrix.shape[1])
        if matrix.tensor.numel() > 0:
            key = (matrix.shape, matrix.rows, matrix.columns, matrix.tensor.dtype, matrix.tensor.device)
            groups.setdefault(key, []).append(matrix)
    for group in groups.values():
        of = _Common(group[0])
        at_once = max(1, workspace_bytes(of.device) // of.bytes)
        for begin in range(0, len(group), at_once):
            batch = group[begin : begin + at_once]
            _fill_together(of, batch, source)
            if meter is not None:
                meter.advance(sum(matrix.tensor.nbytes for matrix in batch))


def _check_interval(what: str, given: Interval | None, size: int) -> None:
    if given is not None and not 0 <= given[0] <= given[1] <= size:
        raise ValueError(f"{what}: expected an interval within 0 and {size}, got {given[0]} to {given[1]}")


class _Common:
    """What the matrices of a batch have in common: shape, box, dtype, device. Rows and columns are those of the tall
    form."""

    def __init__(self, matrix: Matrix) -> None:
        self.dtype, self.device = compute_dtype(matrix.tensor.dtype), matrix.tensor.device
        tall, self.transposed = _tall(matrix)
        rows, columns = (matrix.columns, matrix.rows) if self.transposed else (matrix.rows, matrix.columns)
        # Where the box has intervals of rows and of columns, whole rows are computed, and the columns cut out of them.
        self.by_rows = rows is not None
        self.rows, self.columns = rows or (0, tall.rows), columns or (0, tall.columns)
        length = tall.rows if self.by_rows else self.columns[1] - self.columns[0]
        self.bytes = (self.rows[1] - self.rows[0]) * length * self.dtype.itemsize
        self.in_groups = makes_groups(self.device) and not self.by_rows
        if self.in_groups:
            self.bytes += _group_bytes(tall.rows, self.columns[1], _width(tall), self.dtype)


def _fill_together(of: _Common, batch: Sequence[Matrix], source: Source) -> None:
    found = [_tall(matrix)[0] for matrix in batch]
    # A blocking copy would wait for the stream of a GPU.
    gains = torch.tensor([matrix.gain for matrix in batch], dtype=of.dtype, device="cpu").to(
        of.device, non_blocking=True
    )
    begin, end = of.columns
    make_columns = _grouped_columns if of.in_groups else _columns
    if of.by_rows:
        space = torch.empty(len(batch), of.rows[1] - of.rows[0], found[0].rows, dtype=of.dtype, device=of.device)
        results = _rows(found, space, gains, source, of.rows[0])[:, :, begin:end]
        results = results.mT if of.transposed else results
    else:
        view = _as_matrix(batch[0], of) if len(batch) == 1 else None
        if view is not None:
            make_columns(found, (view.mT if of.transposed else view).unsqueeze(0), gains, source, begin, end)
            return
        # A tall result is row-major. A wide one is computed as its transpose, so that one is column-major.
        shape = (end - begin, found[0].rows) if of.transposed else (found[0].rows, end - begin)
        results = torch.empty(len(batch), *shape, dtype=of.dtype, device=of.device)
        make_columns(found, results.mT if of.transposed else results, gains, source, begin, end)
    for matrix, result in zip(batch, results, strict=True):
        matrix.tensor.copy_(result.reshape(matrix.tensor.shape))


def _as_matrix(matrix: Matrix, of: _Common) -> torch.Tensor | None:
    """The tensor's own memory in the shape of the box, or None if products cannot be written to it as it lies."""
    if matrix.tensor.dtype != of.dtype:
        return None
    lengths = (of.rows[1] - of.rows[0], of.columns[1] - of.columns[0])
    try:
        view = matrix.tensor.view(lengths[::-1] if of.transposed else lengths)
    except RuntimeError:
        return None
    return view if 1 in view.stride() else None


def _replace_zeros(first: torch.Tensor) -> None:
    """First entries of the vectors must not be zero: a vector of nothing but zero would have no direction."""
    first.masked_fill_(first == 0.0, 2.0**-40)


class _Panel(NamedTuple):
    """Reflectors begin ... begin + width of every matrix of a batch, as I + V T V^T, and the signs of their columns."""

    v: torch.Tensor  # (batch, rows - begin, width), zero above its diagonal
    t: torch.Tensor  # (batch, width, width), upper triangular: minus the T of compact WY
    signs: torch.Tensor  # (batch, width)


def _in_rows(of: Sequence[_Tall]) -> bool:
    """Whether random values are made along the matrices' rows. They are made along whichever lines have the closest
    indices."""
    return of[0].column_step <= of[0].row_step


def _fill_values(of: Sequence[_Tall], begin: int, values: torch.Tensor, source: Source) -> None:
    """Write the random values of each matrix from (begin, begin) on: as many rows and columns as `values` has.

    `values` is (batch, rows, columns), or (batch, columns, rows) where not `_in_rows`.
    """
    targets = []
    for tall, each in zip(of, values, strict=True):
        steps = (tall.row_step, tall.column_step) if _in_rows(of) else (tall.column_step, tall.row_step)
        indices = BoxIndices(tall.offset + begin * sum(steps), steps)
        targets.append(Target(tall.name, each, each.shape, each.dtype, each.device, _NORMAL, indices))
    source.fill_all(targets)


def _panel(of: Sequence[_Tall], begin: int, width: int, space: torch.Tensor, source: Source) -> _Panel:
    """A panel made from new random values, which are written to `space`."""
    rows = of[0].rows - begin
    v = space[: len(of) * rows * width]
    by_rows = _in_rows(of)
    v = v.view(len(of), rows, width) if by_rows else v.view(len(of), width, rows)
    _fill_values(of, begin, v, source)
    if not by_rows:
        v = v.mT
    top = v[:, :width]
    top.copy_(top.tril())
    _replace_zeros(top.diagonal(dim1=1, dim2=2))
    inverse = torch.empty(len(of), width, width, dtype=v.dtype, device=v.device)
    for low, end in _strips(width):  # the upper triangle of X^T X
        torch.bmm(v[:, :, :end].mT, v[:, :, low:end], out=inverse[:, :end, low:end])
    return _Panel(v, *_factor(top, inverse))


def _factor(top: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """t and signs of panels whose random vectors x_j begin with `top`, all (..., width, width).

    `inverse` has X^T X in its upper triangle, and is overwritten. The diagonal of `top` becomes that of V.
    """
    first = top.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(first < 0.0, -1.0, 1.0).to(top.dtype)
    # v_j is x_j with its first entry moved away from zero by |x_j|. That changes the upper triangle of X^T X to that of
    # V^T V: row j of `top` times shift j is added to column j. And v_j.v_j / 2 is |x_j|^2 + |x_j| |x_jj|.
    squares = inverse.diagonal(dim1=-2, dim2=-1).clone()
    shifts = signs * squares.sqrt()
    inverse.add_(top.mT * shifts[..., None, :])
    inverse.diagonal(dim1=-2, dim2=-1).copy_(squares + shifts * first)
    first.add_(shifts)
    unit = torch.eye(top.shape[-1], dtype=top.dtype, device=top.device).neg_().expand_as(inverse)
    return torch.linalg.solve_triangular(inverse.triu_(), unit, upper=True), -signs


def _width(of: _Tall) -> int:
    """How many reflectors a panel has: a share of the columns, but at least so many that a call is worth its time.

    The width depends on the matrix alone, since panels of another width would round the products differently.
    """
    share = of.columns // 4 if of.rows >= 2 * of.columns else of.columns // 8
    return max(1, min(PANEL, of.columns, max(LEAST, share)))


def _strips(width: int) -> list[tuple[int, int]]:
    step = STRIP if width > 2 * STRIP else width
    return [(begin, min(begin + step, width)) for begin in range(0, width, step)]


def _columns(of: Sequence[_Tall], q: torch.Tensor, gains: torch.Tensor, source: Source, begin: int, end: int) -> None:
    """Write columns begin ... end of every matrix into q, (batch, rows, end - begin).

    The last panel acts first, on the elements below and to the right of its corner. At that point the columns to the
    left are still those of the identity, and the rows above are zero. So the products shrink with the panels: a square
    of order n takes 4/3 n^3 operations.
    """
    batch, rows, _ = q.shape
    width = _width(of[0])
    space = torch.empty(batch * rows * width, dtype=q.dtype, device=q.device)
    products, folded = torch.empty(2, batch * width * (end - begin), dtype=q.dtype, device=q.device)
    for k in reversed(range(0, end, width)):
        panel = _panel(of, k, min(width, end - k), space, source)
        own_width = panel.t.shape[1]
        after = k + own_width
        top, below = panel.v[:, :own_width], panel.v[:, own_width:]
        right = q[:, after:, max(after, begin) - begin :]  # columns that later panels made
        if right.numel() > 0:
            shape = (batch, own_width, right.shape[2])
            x, y = (each[: math.prod(shape)].view(shape) for each in (products, folded))
            torch.bmm(below.mT, right, out=x)
            for first, last in _strips(own_width):
                torch.bmm(panel.t[:, first:last, first:], x[:, first:], out=y[:, first:last])
            above = q[:, k:after, max(after, begin) - begin :]
            for first, last in _strips(own_width):
                torch.bmm(top[:, first:last, :last], y[:, :last], out=above[:, first:last])
            right.baddbmm_(below, y)
        new = slice(max(k, begin) - k, min(after, end) - k)
        if new.start < new.stop:
            own = q[:, k:, max(k, begin) - begin : min(after, end) - begin]
            factors = (panel.signs * gains[:, None])[:, None, new]
            upper = (panel.t @ top.mT)[:, :, new] * factors  # upper triangular, without the columns before `new`
            for first, last in _strips(new.stop - new.start):
                reach = new.start + last
                torch.bmm(panel.v[:, :, :reach], upper[:, :reach, first:last], out=own[:, :, first:last])
            own[:, new].diagonal(dim1=1, dim2=2).add_(factors[:, 0])


def _group_bytes(rows: int, columns: int, width: int, dtype: torch.dtype) -> int:
    """The memory of panels with `columns` columns in all: V and V T, and a few matrices of order `width` a panel."""
    return (2 * rows + 5 * width) * columns * dtype.itemsize


def _groups(of: _Tall, end: int, dtype: torch.dtype, budget: int) -> Iterator[tuple[int, int, int]]:
    """(begin, panels, width) of groups of panels of one width, from the last: as many as the budget has room for.

    Like the width, groups depend on the matrix alone. The budget is for one matrix: a batch has so few that they have
    room for all of their panels.
    """
    width = _width(of)
    high = end // width
    if high * width < end:
        yield high * width, 1, end - high * width  # what is left is narrower
    while high > 0:
        low = high - 1
        while low > 0 and _group_bytes(of.rows - (low - 1) * width, (high - low + 1) * width, width, dtype) <= budget:
            low -= 1
        yield low * width, high - low, width
        high = low


def _group(
    of: Sequence[_Tall], begin: int, count: int, width: int, like: torch.Tensor, source: Source
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """V and V T of `count` panels, (batch, count, rows - begin, width), and signs, (batch, count * width).

    All panels have the rows of the first one. A panel that begins further down has zeros above.
    """
    batch, rows, columns = len(of), of[0].rows - begin, count * width
    # bmm requires that the panels of all matrices, batch * count, lie at equal distances.
    if _in_rows(of):
        z = like.new_empty(rows, batch, columns).transpose(0, 1)
        _fill_values(of, begin, z, source)
        z.tril_()
    else:
        transposed = like.new_empty(batch, columns, rows)
        _fill_values(of, begin, transposed, source)
        z = transposed.triu_().mT
    _replace_zeros(z.diagonal(dim1=1, dim2=2))
    panels = z.view(batch, rows, count, width).transpose(1, 2)
    v = panels.flatten(0, 1)
    # The panels' first rows: blocks on the diagonal.
    top = z[:, :columns].view(batch, count, width, count, width).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    t, signs = _factor(top, torch.bmm(v.mT, v).view(top.shape))
    return panels, torch.bmm(v, t.flatten(0, 1)).view(panels.shape), signs.flatten(1)


def _grouped_columns(
    of: Sequence[_Tall], q: torch.Tensor, gains: torch.Tensor, source: Source, begin: int, end: int
) -> None:
    """What `_columns` does, in the fewest calls: two products a panel, and the rest once for a group of panels.

    The panel acts on its own columns of the identity, too, and on zeros beside them, which takes some more operations.
    """
    q.zero_()
    for first, count, width in _groups(of[0], end, q.dtype, workspace_bytes(q.device)):
        v, vt, signs = _group(of, first, count, width, q, source)
        new, after = max(first, begin), first + count * width
        if new < after:
            own = q[:, new:, new - begin : after - begin]
            own.diagonal(dim1=1, dim2=2).copy_((signs * gains[:, None])[:, new - first :])
        for panel in reversed(range(count)):
            below = panel * width
            k = first + below
            right = q[:, k:, max(k, begin) - begin :]
            right.baddbmm_(vt[:, panel, below:], torch.bmm(v[:, panel, below:].mT, right))
        del v, vt  # their memory is the next group's


def _rows(of: Sequence[_Tall], q: torch.Tensor, gains: torch.Tensor, source: Source, begin: int) -> torch.Tensor:
    """Compute rows begin ... begin + q.shape[1] of every matrix in q, (batch, rows wanted, all rows); a view of q."""
    batch, wanted, rows = q.shape
    columns = of[0].columns
    q.zero_()
    q[:, :, begin : begin + wanted].diagonal(dim1=1, dim2=2).fill_(1.0)
    width = _width(of[0])
    space = torch.empty(batch * rows * width, dtype=q.dtype, device=q.device)
    signs = []
    for k in range(0, columns, width):
        panel = _panel(of, k, min(width, columns - k), space, source)
        right = q[:, :, k:]
        right.baddbmm_((right @ panel.v) @ panel.t, panel.v.mT)
        signs.append(panel.signs)
    found = q[:, :, :columns]
    return found.mul_((torch.cat(signs, dim=1) * gains[:, None])[:, None])
