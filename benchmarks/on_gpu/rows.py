"""The rows: what is measured, and the figures that are wanted."""
# mypy: disable-error-code="no-untyped-call"
# The initialisers of torch have no types.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import models
import numpy as np
import torch

import fastinit
from fastinit.cli.demo import GPT2, Size
from fastinit.plans.planned import Plan
from fastinit.rules.lists import plan_tensors
from fastinit.run.table import Table
from fastinit.run.targets import Target
from on_gpu.measuring import Wanted, Work
from on_gpu.settings import DTYPES, SCHEMES, STD, TORCH, Settings, native


def targets_of(plan: Plan) -> list[Target]:
    targets = []
    for row in plan.rows:
        if row.distribution is not None:
            tensor = row.tensor
            target = Target(row.name, tensor, tensor.shape, tensor.dtype, tensor.device, row.distribution)
            targets.append(target)
    return targets


def kernel_alone(rows: np.ndarray[Any, Any], settings: Settings) -> Callable[[], object]:
    """The launch, from a table that lies on the device."""
    if not settings.on_gpu:
        return partial(native().fill_cpu, rows, 0, torch.get_num_threads())
    image, num_chunks = native().cuda_table(rows)
    on_device = torch.from_numpy(image).to(settings.device)
    stream = torch.cuda.current_stream().cuda_stream
    index = settings.device.index

    def launch() -> None:
        native().fill_cuda(on_device.data_ptr(), len(rows), num_chunks, 0, index, stream)

    return launch


def contestants_of(
    plan: Plan, settings: Settings, *, torch: Callable[[], object], fill: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    """What a plan is measured beside: torch's way, its own kernel without the rest, and a fill with one value."""
    kernel = kernel_alone(Table(targets_of(plan)).rows, settings)
    return {"torch": torch, "fastinit": plan.run_, "kernel": kernel, "fill": fill}


def large_fill(kind: str, dtype_name: str, settings: Settings) -> Work:
    """4 GiB of one distribution."""
    dtype = DTYPES[dtype_name]
    num_bytes = (4 << 30) // settings.divisor
    tensor = torch.empty(num_bytes // dtype.itemsize, dtype=dtype, device=settings.device)
    plan = plan_tensors([tensor], SCHEMES[kind], seed=0, backend="native")
    wanted: tuple[Wanted, ...] = ()
    if kind != "constant":
        if dtype_name == "float32":
            wanted = (Wanted(0.90, "of fill_"),)
        elif dtype_name == "bfloat16":
            wanted = (Wanted(0.60, "of fill_"), Wanted(2.0, "x torch"))
    # torch draws no 8-bit floats: whoever wants them draws a wider tensor and casts it.
    drawn = tensor if dtype.itemsize > 1 else torch.empty(tensor.numel(), dtype=torch.bfloat16, device=settings.device)

    def by_torch() -> None:
        TORCH[kind](drawn)
        if drawn is not tensor:
            tensor.copy_(drawn)

    return Work(
        f"{kind}, {dtype_name}, {num_bytes / 2**30:g} GiB",
        tensor.numel(),
        num_bytes,
        contestants_of(plan, settings, torch=by_torch, fill=partial(tensor.fill_, 0.5)),
        wanted,
        one_launch=True,
    )


def usual_loop(parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> Callable[[], None]:
    """What training scripts do: normal for matrices, ones for norms, zeros for biases."""
    of_parameter: list[tuple[Callable[[torch.Tensor], object], torch.Tensor]] = []
    for name, parameter in parameters:
        if parameter.dim() >= 2:
            of_parameter.append((TORCH["normal"], parameter))
        else:
            of_parameter.append((torch.nn.init.zeros_ if name.endswith("bias") else torch.nn.init.ones_, parameter))

    def loop() -> None:
        for initialise, parameter in of_parameter:
            initialise(parameter)

    return loop


def whole_model(
    name: str,
    shapes: models.Shapes,
    dtype_name: str,
    settings: Settings,
    wanted: tuple[Wanted, ...] = (),
    first_run: bool = False,
) -> Work:
    """The parameters of a model. `first_run`: a new plan every time, with its upload."""
    divided = [(each, tuple(max(1, size // settings.model_divisor) for size in shape)) for each, shape in shapes]
    with torch.device(settings.device):
        allocated = models.allocate(divided, DTYPES[dtype_name])
    parameters = list(allocated.model.named_parameters())
    assert len(parameters) == len(shapes)
    plan = partial(fastinit.plan, allocated.model, SCHEMES["normal"], seed=0, backend="native", strict=True)
    loop = usual_loop(parameters)
    divided_by = f" with dimensions / {settings.model_divisor}" if settings.model_divisor > 1 else ""
    label = f"{name}{divided_by}, {dtype_name}, {len(parameters)} tensors"
    numel = sum(parameter.numel() for _, parameter in parameters)
    num_bytes = numel * DTYPES[dtype_name].itemsize
    if first_run:
        contestants: dict[str, Callable[[], object]] = {"torch": loop, "fastinit": lambda: plan().run_()}
        return Work(label + ": first run, with plan and upload", numel, num_bytes, contestants, whole_calls=True)

    def fill() -> None:
        with torch.no_grad():
            for _, parameter in parameters:
                parameter.fill_(0.5)

    made = plan()
    contestants = contestants_of(made, settings, torch=loop, fill=fill)
    return Work(label, numel, num_bytes, contestants, wanted, whole_calls=True, one_launch=True)


def many_small(settings: Settings, first_run: bool = False) -> Work:
    """10 000 tensors of 1 000 elements: all overhead."""
    tensors = [torch.empty(10, 100, device=settings.device) for _ in range(10_000)]
    plan = partial(plan_tensors, tensors, "xavier_uniform", seed=0, backend="native")

    def loop() -> None:
        for tensor in tensors:
            torch.nn.init.xavier_uniform_(tensor)

    def fill() -> None:
        for tensor in tensors:
            tensor.fill_(0.5)

    label = "10 000 tensors of 1 000, float32"
    if first_run:
        contestants: dict[str, Callable[[], object]] = {"torch": loop, "fastinit": lambda: plan().run_()}
        return Work(label + ": first run, with plan and upload", 10**7, 4 * 10**7, contestants, whole_calls=True)
    made = plan()
    contestants = contestants_of(made, settings, torch=loop, fill=fill)
    return Work(label, 10**7, 4 * 10**7, contestants, (Wanted(50.0, "x torch"),), whole_calls=True, one_launch=True)


def orthogonal(
    count: int, side: int, settings: Settings, wanted: tuple[Wanted, ...] = (), one_launch: bool = False
) -> Work:
    """Square orthogonal matrices, against torch's, which factorises one after the other."""
    side = max(1, side // settings.model_divisor)
    tensors = [torch.empty(side, side, device=settings.device) for _ in range(count)]
    plan = plan_tensors(tensors, "orthogonal", seed=0, backend="native")

    def loop() -> None:
        for tensor in tensors:
            torch.nn.init.orthogonal_(tensor)

    numel = count * side * side
    label = f"orthogonal, float32, {'' if count == 1 else f'{count} of '}{side} x {side}"
    contestants: dict[str, Callable[[], object]] = {"torch": loop, "fastinit": plan.run_}
    return Work(label, numel, 4 * numel, contestants, wanted, whole_calls=True, one_launch=one_launch)


def one_tensor(size: int, settings: Settings) -> Work:
    """A call of the function that bears torch's name: all overhead, the upload of a table included."""
    tensor = torch.empty(size, device=settings.device)
    contestants: dict[str, Callable[[], object]] = {
        "torch": partial(torch.nn.init.normal_, tensor, 0.0, STD),
        "fastinit": partial(fastinit.functional.normal_, tensor, 0.0, STD),
        "fill": partial(tensor.fill_, 0.5),
    }
    return Work(f"normal_ of one tensor of {size}, float32", size, 4 * size, contestants)


def built_under_fused(settings: Settings) -> Work:
    """A model's own constructor on the device, as it is and under fused()."""
    size = Size(24, max(16, 1024 // settings.model_divisor // 16 * 16), 16, 50304 // settings.model_divisor, 1024)
    numel = sum(parameter.numel() for parameter in GPT2(size._replace(layers=1)).parameters())
    width = size.width
    numel += (size.layers - 1) * (12 * width * width + 13 * width)

    def plain() -> None:
        with torch.device(settings.device):
            GPT2(size)

    def fused() -> None:
        with torch.device(settings.device), fastinit.fused(seed=0):
            GPT2(size)

    contestants: dict[str, Callable[[], object]] = {"torch": plain, "fastinit": fused}
    return Work(
        f"constructor of GPT-2, {size.layers} layers of {width}", numel, 4 * numel, contestants, whole_calls=True
    )


def transposed(dtype_name: str, settings: Settings) -> Work:
    """A matrix that lies column by column: neighbours of the index lie a column apart."""
    dtype = DTYPES[dtype_name]
    side = math.isqrt((1 << 30) // settings.divisor // dtype.itemsize)
    tensor = torch.empty(side, side, dtype=dtype, device=settings.device).t()
    plan = plan_tensors([tensor], SCHEMES["uniform"], seed=0, backend="native")
    return Work(
        f"uniform, {dtype_name}, {side} x {side}, transposed",
        tensor.numel(),
        tensor.numel() * dtype.itemsize,
        contestants_of(plan, settings, torch=partial(TORCH["uniform"], tensor), fill=partial(tensor.fill_, 0.5)),
    )


def column_shard(dtype_name: str, settings: Settings) -> Work:
    """An eighth of the columns of a matrix, in memory of its own: a run of the index for every row of the matrix."""
    dtype = DTYPES[dtype_name]
    columns = 2048
    rows = max(1, (1 << 30) // settings.divisor // dtype.itemsize // columns)
    tensor = torch.empty(rows, columns, dtype=dtype, device=settings.device)
    whole = Table(targets_of(plan_tensors([tensor], SCHEMES["uniform"], seed=0, backend="native"))).rows
    table = np.frombuffer(bytearray(whole.tobytes()), whole.dtype)  # copy() would leave out what prepare() wrote
    table["global_offset"], table["row_length"], table["rows_per_slab"] = columns, columns, rows
    table["row_index_step"], table["row_memory_step"] = 8 * columns, columns
    return Work(
        f"uniform, {dtype_name}, {rows} x {columns}, columns of 8 times as many",
        tensor.numel(),
        tensor.numel() * dtype.itemsize,
        {"kernel": kernel_alone(table, settings), "fill": partial(tensor.fill_, 0.5)},
    )


def plan_of(model: torch.nn.Module, scheme: Any) -> fastinit.Plan:
    """A plan that gives a vector the scheme: without a rule it would be left to its author."""
    plan = fastinit.plan(model, "normal", [("w", scheme)], seed=0, backend="native")
    assert [row.action for row in plan.rows] == ["init"], "what is measured would write nothing"
    return plan


def blend(kind: str, dtype_name: str, settings: Settings) -> Work:
    """1 GiB that is read and written. The memory's limit is mul_, which stands where other rows have fill_."""
    dtype = DTYPES[dtype_name]
    weight = torch.nn.Parameter(
        torch.zeros((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
    )
    plan = plan_of(torch.nn.ParameterDict({"w": weight}), SCHEMES[kind])
    keep, scale = 0.9, 0.1

    @torch.no_grad()
    def by_torch() -> None:
        torch.manual_seed(0)
        noise = torch.empty_like(weight)
        TORCH[kind](noise)
        weight.mul_(keep).add_(noise, alpha=scale)

    @torch.no_grad()
    def limit() -> None:
        weight.mul_(keep)

    return Work(
        f"blend of {kind}, {dtype_name}, fill_: mul_",
        weight.numel(),
        2 * weight.numel() * dtype.itemsize,
        {"torch": by_torch, "fastinit": partial(plan.blend_, keep, scale), "fill": limit},
        (Wanted(0.6, "of fill_"),) if kind == "uniform" else (Wanted(10.0, "x torch"),),
        one_launch=True,
    )


def masked(dtype_name: str, settings: Settings) -> Work:
    """Every second element of 1 GiB anew, against run_, which stands where others have fill_."""
    dtype = DTYPES[dtype_name]
    weight = torch.nn.Parameter(
        torch.zeros((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
    )
    plan = plan_of(torch.nn.ParameterDict({"w": weight}), SCHEMES["normal"])
    mask = torch.arange(weight.numel(), device=settings.device) % 2 == 0
    return Work(
        f"normal where a mask is true, {dtype_name}, fill_: run_",
        weight.numel(),
        weight.numel() * dtype.itemsize,
        {"fastinit": partial(plan.run_, where={"w": mask}), "fill": plan.run_},
        one_launch=True,
    )


def reading(name: str, dtype_name: str, settings: Settings) -> Work:
    """What makes the values of 1 GiB once more and compares, against run_, which stands where others have fill_."""
    dtype = DTYPES[dtype_name]
    weight = torch.nn.Parameter(
        torch.empty((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
    )
    model = torch.nn.ParameterDict({"w": weight})
    plan = plan_of(model, SCHEMES["normal"])
    plan.run_()
    readers: dict[str, Callable[..., object]] = {"verify": fastinit.verify, "distance": fastinit.distance}
    return Work(
        f"{name} of normal, {dtype_name}, fill_: run_",
        weight.numel(),
        weight.numel() * dtype.itemsize,
        {"fastinit": partial(readers[name], model, plan), "fill": plan.run_},
        (Wanted(1.0 / 1.5, "of fill_"),),
    )


def works(settings: Settings, quick: bool) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Names and makers of the rows, those with wanted figures first. A row has its memory only while it is measured."""
    for dtype_name in ("float32", "bfloat16"):
        for kind in ("uniform", "normal", "trunc_normal"):
            yield f"{kind}, {dtype_name}", partial(large_fill, kind, dtype_name, settings)
    llama = partial(whole_model, "Llama 3 8B", models.llama_3_8b(), "bfloat16", settings)
    yield "Llama 3 8B", partial(llama, wanted=(Wanted(3.0, "x torch"),))
    yield "10 000 tensors", partial(many_small, settings)
    yield "orthogonal 4096 x 4096", partial(orthogonal, 1, 4096, settings, (Wanted(15.0, "x torch"),))
    yield "orthogonal 48 of 1024 x 1024", partial(orthogonal, 48, 1024, settings, (Wanted(20.0, "x torch"),))
    yield "orthogonal 512 of 128 x 128", partial(orthogonal, 512, 128, settings, one_launch=True)
    for kind in ("uniform", "normal"):
        for dtype_name in ("float32", "bfloat16"):
            yield f"blend of {kind}, {dtype_name}", partial(blend, kind, dtype_name, settings)
    yield "normal where a mask is true", partial(masked, "float32", settings)
    for name in ("verify", "distance"):
        yield f"{name} of normal, float32", partial(reading, name, "float32", settings)
    gpt2 = partial(whole_model, "GPT-2 XL", models.gpt2_xl(), "float32", settings)
    yield "GPT-2 XL", gpt2
    yield "Llama 3 8B, first run", partial(llama, first_run=True)
    yield "10 000 tensors, first run", partial(many_small, settings, first_run=True)
    yield "constructor of GPT-2", partial(built_under_fused, settings)
    for size in (10, 65_536):
        yield f"one tensor of {size}", partial(one_tensor, size, settings)
    for dtype_name in () if quick else ("float8_e4m3fn", "float8_e5m2", "float16", "float64"):
        for kind in ("uniform", "normal", "trunc_normal"):
            yield f"{kind}, {dtype_name}", partial(large_fill, kind, dtype_name, settings)
    for dtype_name in ("float32", "bfloat16"):
        yield f"constant, {dtype_name}", partial(large_fill, "constant", dtype_name, settings)
        yield f"transposed, {dtype_name}", partial(transposed, dtype_name, settings)
        yield f"column shard, {dtype_name}", partial(column_shard, dtype_name, settings)
