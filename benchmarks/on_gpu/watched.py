"""What sanitizers and profilers watch: a few MB of everything, and single launches."""

from __future__ import annotations

import argparse
import math

import torch

import fastinit
from fastinit.rules.lists import plan_tensors
from fastinit.run import engine
from fastinit.run.targets import Target
from fastinit.schemes import distributions
from on_gpu.settings import DTYPES, SCHEMES, Settings


def small_plan(arguments: argparse.Namespace) -> int:
    """A few MB of every distribution, dtype and layout, compared with the CPU's; and orthogonal matrices."""
    kinds: list[distributions.Distribution] = [
        distributions.Uniform(-0.5, 1.5),
        distributions.Normal(0.0, 1.0),
        distributions.TruncNormal(0.0, 0.02, -0.04, 0.04),
        distributions.TruncNormal(0.0, 1.0, 4.5, math.inf),
        distributions.Constant(0.3),
        distributions.Diagonal(0.7, 3, 65, 9, 640),
    ]
    device = Settings.of(arguments).device

    def targets(where: torch.device) -> list[Target]:
        made = []
        sizes = (1, 3, 17, 8191, 8193, 30_011)
        for place in range(len(kinds) * len(DTYPES) * len(sizes)):
            kind = kinds[place % len(kinds)]
            dtype = list(DTYPES.values())[place // len(kinds) % len(DTYPES)]
            size = sizes[place // len(kinds) // len(DTYPES)]
            unaligned = place % 3
            flat = torch.empty(size + unaligned, dtype=dtype, device=where)[unaligned:]
            columns = size // 7 + 1
            square = torch.empty(columns, 9, dtype=dtype, device=where)
            last = torch.empty(2, 3, 3, columns, dtype=dtype, device=where).permute(0, 3, 1, 2)
            for layout, tensor, zero_row in (
                ("flat", flat, None),
                ("transposed", square.t(), 4),
                ("padded", square[:, 1:8] if place % 2 else torch.empty_like(square)[:, 2:7], None),
                ("channels_last", last, None),
            ):
                if layout == "transposed" and place % 2:
                    continue  # here the memory of `square` belongs to "padded"
                name = f"{place}.{layout}"
                values = kind if zero_row is None else distributions.ZeroRow(zero_row, tensor.shape[0], kind)
                made.append(Target(name, tensor, tensor.shape, tensor.dtype, tensor.device, values))
        return made

    ours, expected = targets(device), targets(torch.device("cpu"))
    program = engine.Program(ours, "native")
    wrong = wrong_orthogonal(device)
    for seed in (1, 2):
        program.run_(seed, None)
        engine.Program(expected, "native").run_(seed, None)
        for target, twin in zip(ours, expected, strict=True):
            integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[target.dtype.itemsize]
            left, right = (each.tensor.cpu().contiguous().view(integers) for each in (target, twin))
            if not torch.equal(left, right):
                wrong += 1
                print(f"{target.name}: {target.distribution} in {target.dtype} differs from the CPU's")
    print(f"{len(ours)} tensors on {device}, {wrong} differences from the CPU")
    return 1 if wrong else 0


def wrong_orthogonal(device: torch.device) -> int:
    """How many of a few orthogonal matrices, of all that a block of threads can hold, are not orthogonal."""
    shapes = [(1, 1), (7, 5), (5, 7), (33, 33), (64, 27), (130, 40), (20, 150), (300, 12), (128, 128)]
    dtypes = [dtype for dtype in DTYPES.values() if dtype.itemsize > 1]  # matrices in 8-bit floats are refused
    tensors = [torch.empty(shape, dtype=dtype, device=device) for dtype in dtypes for shape in shapes]
    tensors += [torch.empty(30, 50, device=device).t(), torch.empty(40, 50, device=device)[3:20, ::2]]
    fastinit.init_(tensors, "orthogonal", seed=0, backend="native")
    wrong = 0
    for tensor in tensors:
        q = tensor.cpu().double()
        product = q @ q.mT if q.shape[0] < q.shape[1] else q.mT @ q
        error = float((product - torch.eye(len(product))).abs().max())
        if not error < {2: 0.02, 4: 1e-5, 8: 1e-14}[tensor.dtype.itemsize]:
            wrong += 1
            print(f"{tuple(tensor.shape)} in {tensor.dtype} is not orthogonal, by {error}")
    return wrong


def one_launch_each(arguments: argparse.Namespace) -> int:
    """1 GiB of each (kind, dtype) asked for, one launch each: for a profiler."""
    settings = Settings.of(arguments)
    for kind, dtype_name in arguments.one:
        dtype = DTYPES[dtype_name]
        tensor = torch.empty((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
        plan_tensors([tensor], SCHEMES[kind], seed=0, backend="native").run_()
        settings.synchronize()
        print(f"{kind} {dtype_name}", flush=True)
        del tensor
    return 0
