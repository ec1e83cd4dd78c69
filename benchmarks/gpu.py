"""What is done on a machine with a GPU: `make gpu OUT=dir`, or parts of it by hand.

    python benchmarks/gpu.py --out DIR          the benchmarks, with a fastinit that is built for CUDA
    python benchmarks/gpu.py --all --out DIR    build, tests, sanitizer, benchmarks, counters: `make gpu`

Needs no network. Writes gpu.json and gpu.txt into DIR after every row and every part, so that whatever breaks off later
takes nothing along; at most eight files in all. With --dry-run, on the CPU and with tiny tensors: it shows that the
script works, and its figures mean nothing.
"""
# mypy: disable-error-code="no-untyped-call"
# Events, streams and the initialisers of torch have no types.

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import gc
import io
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import models
import numpy as np
import torch
from run import processor

import fastinit
from fastinit import _native
from fastinit.cli.demo import GPT2, Size
from fastinit.plans import Plan
from fastinit.rules.lists import plan_tensors
from fastinit.run import engine
from fastinit.run.table import Table
from fastinit.run.targets import Target
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme

ROOT = Path(__file__).resolve().parents[1]
THIS = Path(__file__).resolve()
MOST_SECONDS = 465.0  # of everything

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
STD = 0.02
SCHEMES: dict[str, Scheme] = {
    "uniform": fastinit.Uniform(-STD, STD),
    "normal": fastinit.Normal(0.0, STD),
    "trunc_normal": fastinit.TruncNormal(0.0, STD, (-2.0, 2.0), unit="sigma"),
    "constant": fastinit.Constant(0.5),
}
TORCH: dict[str, Callable[[torch.Tensor], object]] = {
    "uniform": lambda tensor: torch.nn.init.uniform_(tensor, -STD, STD),
    "normal": lambda tensor: torch.nn.init.normal_(tensor, 0.0, STD),
    "trunc_normal": lambda tensor: torch.nn.init.trunc_normal_(tensor, 0.0, STD, -2.0 * STD, 2.0 * STD),
    "constant": lambda tensor: torch.nn.init.constant_(tensor, 0.5),
}


# ---- How much, and on what ----


@dataclass(frozen=True)
class Settings:
    device: torch.device
    divisor: int  # of the number of bytes of large tensors
    model_divisor: int  # of the dimensions of models
    repetitions: int
    sample_seconds: float  # a sample repeats its work until it takes so long

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Settings:
        if arguments.dry_run:
            return cls(torch.device("cpu"), 1 << 13, 64, 3, 0.0)
        if not torch.cuda.is_available():
            raise SystemExit("there is no GPU; --dry-run shows on the CPU that the script works")
        device = torch.device("cuda", torch.cuda.current_device())
        if arguments.quick:
            return cls(device, 16, 4, 7, 0.003)
        return cls(device, 1, 1, 25, 0.01)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def native() -> Any:
    if _native.module is None:
        raise SystemExit(f"the native code is not there: {_native.reason}")
    return _native.module


def command_output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures come from. FASTINIT_COMMIT names the commit where the tree is a copy without its history."""
    found: dict[str, Any] = {
        "gpu": None,
        "driver": command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "fastinit": fastinit.__version__,
        "commit": os.environ.get("FASTINIT_COMMIT") or command_output("git", "rev-parse", "HEAD"),
        "changed_files": command_output("git", "status", "--porcelain", "--untracked-files=no"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = properties.name
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["l2_cache_mib"] = round(getattr(properties, "L2_cache_size", 0) / 2**20, 1)
    return found


# ---- The record: one JSON file, and one table of it ----


class Record:
    """gpu.json and gpu.txt in a folder. Several processes add to it, one after the other."""

    def __init__(self, out: Path, afresh: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._json, self._text = out / "gpu.json", out / "gpu.txt"
        self.data: dict[str, Any] = {"machine": {}, "parts": [], "results": [], "counters": []}
        if not afresh:
            self.load()

    def load(self) -> None:
        if self._json.exists():
            self.data = json.loads(self._json.read_text(encoding="utf-8"))

    def save(self) -> None:
        for path, text in ((self._json, json.dumps(self.data, indent=1)), (self._text, render(self.data))):
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(text + "\n", encoding="utf-8")
            unfinished.replace(path)  # a reader, and a kill at any moment, finds the old file or the new one

    def add(self, key: str, entry: dict[str, Any]) -> None:
        self.load()
        self.data[key].append(entry)
        self.save()


def table_of(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns: the first and the last aligned to the left, the others to the right."""
    rows = [list(titles), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    last = len(titles) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def render(data: dict[str, Any]) -> str:
    sections = ["\n".join(f"{key}: {value}" for key, value in data["machine"].items() if value not in (None, ""))]
    if data["parts"]:
        lines = [(each["part"], number(each["seconds"], 1), each["outcome"], each["detail"]) for each in data["parts"]]
        sections.append(table_of(("part", "seconds", "outcome", ""), lines))
    if data["results"]:
        sections.append(render_results(data["results"]))
    if data["counters"]:
        sections.append(render_counters(data["counters"]))
    return "\n\n".join(sections)


def render_results(results: Sequence[dict[str, Any]]) -> str:
    titles = ("work", "torch", "fastinit", "kernel", "fill_", "ms", "iqr", "Gvalues/s", "x torch", "of fill_", "wanted")
    lines = []
    for each in results:
        if "error" in each:
            lines.append((each["work"], *[""] * 9, "ERROR: " + each["error"].splitlines()[-1]))
            continue
        speed = each["gigabytes_per_second"]
        ours = each["seconds"].get("fastinit") or each["seconds"]["kernel"]
        wishes = [
            f"{wish['least']:g} {wish['of']}: {'reached' if wish['reached'] else 'MISSED'}" for wish in each["wanted"]
        ]
        if "launches" in each:
            wishes.append(f"launches: {each['launches']}")
        lines.append(
            (
                each["work"],
                *(number(speed.get(contestant), 0) for contestant in ("torch", "fastinit", "kernel", "fill")),
                number(ours["median"] * 1e3, 3),
                number(100.0 * ours["iqr"] / ours["median"], 1) + "%",
                number(each["values_per_second"] / 1e9, 1),
                number(each["ratio_to_torch"], 1),
                number(each["share_of_fill"], 3),
                "; ".join(wishes),
            )
        )
    about = (
        "torch, fastinit, kernel, fill_: GB/s of memory written, from the medians. fastinit: run_() of a plan that is "
        "made; kernel: the launch alone.\nms, iqr, Gvalues/s, x torch, of fill_: of fastinit; medians of events on the "
        "device. Of a blend, memory read and written. A row without wanted figures is for information."
    )
    return table_of(titles, lines) + "\n\n" + about


def render_counters(counters: Sequence[dict[str, Any]]) -> str:
    names = sorted({name for each in counters for name in each["metrics"]})
    titles = ("counter", *(each["kernel"] for each in counters), "")
    lines = [(name, *(number(each["metrics"].get(name), 2) for each in counters), "") for name in names]
    return table_of(titles, lines)


# ---- Measuring ----


class Wanted(NamedTuple):
    """At least so much of another contestant's speed."""

    least: float
    of: str  # "of fill_" or "x torch"


@dataclass
class Work:
    """One row: contestants that do the same work on the same memory."""

    name: str
    numel: int
    num_bytes: int
    contestants: dict[str, Callable[[], object]]
    wanted: tuple[Wanted, ...] = ()
    whole_calls: bool = False  # one call a sample, the host's time included
    one_launch: bool = False  # of the contestant "fastinit", counted
    notes: dict[str, Any] = field(default_factory=dict)


def seconds_of(work: Callable[[], object], calls: int, settings: Settings) -> float:
    """Of one call, by events on the device. It is idle before, so that time spent on the host counts where it waits."""
    settings.synchronize()
    if not settings.on_gpu:
        before = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - before) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def warm_up(work: Work, settings: Settings) -> dict[str, float]:
    """Once each, and then until the clocks have risen. Returns about how long each takes."""
    for each in work.contestants.values():
        each()
    settings.synchronize()
    heating = work.contestants.get("fill") or next(iter(work.contestants.values()))
    until = time.perf_counter() + 10 * settings.sample_seconds
    while time.perf_counter() < until:
        heating()
        settings.synchronize()
    return {name: seconds_of(each, 1, settings) for name, each in work.contestants.items()}


def measure(work: Work, settings: Settings) -> dict[str, Any]:
    """The medians of all contestants, their samples taken in turns."""
    about = warm_up(work, settings)
    calls: dict[str, int] = {}
    repetitions: dict[str, int] = {}
    for name, seconds in about.items():
        whole = work.whole_calls and name in ("torch", "fastinit")
        calls[name] = 1 if whole else max(1, min(200, math.ceil(settings.sample_seconds / max(seconds, 1e-7))))
        # What takes seconds is sampled less often: at least five times.
        affordable = math.floor(4.0 / max(seconds * calls[name], 1e-7))
        repetitions[name] = max(min(5, settings.repetitions), min(settings.repetitions, affordable))
    samples: dict[str, list[float]] = {name: [] for name in about}
    names = list(about)
    gc.collect()
    gc.disable()
    try:
        for turn in range(max(repetitions.values())):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]  # nobody always comes after the same one
                if turn < repetitions[name]:
                    samples[name].append(seconds_of(work.contestants[name], calls[name], settings))
    finally:
        gc.enable()
    return summary(work, samples, calls)


def summary(work: Work, samples: dict[str, list[float]], calls: dict[str, int]) -> dict[str, Any]:
    seconds: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        seconds[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "iqr": quartiles[2] - quartiles[0],
            "samples": len(values),
            "calls_a_sample": calls[name],
        }
    median = {name: each["median"] for name, each in seconds.items()}
    ours = median.get("fastinit", median.get("kernel", math.nan))
    ratio_to_torch = median["torch"] / ours if "torch" in median else None
    share_of_fill = median["fill"] / ours if "fill" in median else None
    measured = {"x torch": ratio_to_torch, "of fill_": share_of_fill}
    wanted = []
    for wish in work.wanted:
        value = measured[wish.of]
        wanted.append({**wish._asdict(), "measured": value, "reached": value is not None and value >= wish.least})
    return {
        "work": work.name,
        "numel": work.numel,
        "bytes": work.num_bytes,
        "seconds": seconds,
        "gigabytes_per_second": {name: work.num_bytes / value / 1e9 for name, value in median.items()},
        "values_per_second": work.numel / ours,
        "ratio_to_torch": ratio_to_torch,
        "share_of_fill": share_of_fill,
        "kernel_share_of_fill": median["fill"] / median["kernel"] if {"fill", "kernel"} <= median.keys() else None,
        "wanted": wanted,
        **work.notes,
    }


# ---- The rows ----


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
        {
            "torch": by_torch,
            "fastinit": plan.run_,
            "kernel": kernel_alone(Table(targets_of(plan)).rows, settings),
            "fill": partial(tensor.fill_, 0.5),
        },
        wanted,
        one_launch=True,
    )


def llama_3_8b() -> models.Shapes:
    """8.03 billion parameters in 291 tensors (Llama 3 model card: 32 layers, 8 key-value heads, embeddings untied)."""
    width, hidden, vocabulary, kv = 4096, 14336, 128256, 1024
    shapes: models.Shapes = [("model.embed_tokens.weight", (vocabulary, width))]
    for layer in range(32):
        block = f"model.layers.{layer}."
        shapes += [(block + "self_attn.q_proj.weight", (width, width))]
        shapes += [(block + "self_attn.k_proj.weight", (kv, width)), (block + "self_attn.v_proj.weight", (kv, width))]
        shapes += [(block + "self_attn.o_proj.weight", (width, width))]
        shapes += [(block + "mlp.gate_proj.weight", (hidden, width)), (block + "mlp.up_proj.weight", (hidden, width))]
        shapes += [(block + "mlp.down_proj.weight", (width, hidden))]
        shapes += [(block + "input_layernorm.weight", (width,)), (block + "post_attention_layernorm.weight", (width,))]
    return [*shapes, ("model.norm.weight", (width,)), ("lm_head.weight", (vocabulary, width))]


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
    contestants = {
        "torch": loop,
        "fastinit": made.run_,
        "kernel": kernel_alone(Table(targets_of(made)).rows, settings),
        "fill": fill,
    }
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
    contestants = {
        "torch": loop,
        "fastinit": made.run_,
        "kernel": kernel_alone(Table(targets_of(made)).rows, settings),
        "fill": fill,
    }
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
        {
            "torch": partial(TORCH["uniform"], tensor),
            "fastinit": plan.run_,
            "kernel": kernel_alone(Table(targets_of(plan)).rows, settings),
            "fill": partial(tensor.fill_, 0.5),
        },
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


def blend(kind: str, dtype_name: str, settings: Settings) -> Work:
    """1 GiB that is read and written. The memory's limit is mul_, which stands where other rows have fill_."""
    dtype = DTYPES[dtype_name]
    weight = torch.nn.Parameter(
        torch.zeros((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
    )
    plan = fastinit.plan(torch.nn.ParameterDict({"w": weight}), SCHEMES[kind], seed=0, backend="native")
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


def reading(name: str, dtype_name: str, settings: Settings) -> Work:
    """What makes the values of 1 GiB once more and compares, against run_, which stands where others have fill_."""
    dtype = DTYPES[dtype_name]
    weight = torch.nn.Parameter(
        torch.empty((1 << 30) // settings.divisor // dtype.itemsize, dtype=dtype, device=settings.device)
    )
    model = torch.nn.ParameterDict({"w": weight})
    plan = fastinit.plan(model, SCHEMES["normal"], seed=0, backend="native")
    plan.run_()
    read = {"verify": fastinit.verify, "distance": fastinit.distance}[name]
    return Work(
        f"{name} of normal, {dtype_name}, fill_: run_",
        weight.numel(),
        weight.numel() * dtype.itemsize,
        {"fastinit": partial(read, model, plan), "fill": plan.run_},
        (Wanted(1.0 / 1.5, "of fill_"),),
    )


def works(settings: Settings, quick: bool) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Names and makers of the rows, those with wanted figures first. A row has its memory only while it is measured."""
    for dtype_name in ("float32", "bfloat16"):
        for kind in ("uniform", "normal", "trunc_normal"):
            yield f"{kind}, {dtype_name}", partial(large_fill, kind, dtype_name, settings)
    llama = partial(whole_model, "Llama 3 8B", llama_3_8b(), "bfloat16", settings)
    yield "Llama 3 8B", partial(llama, wanted=(Wanted(3.0, "x torch"),))
    yield "10 000 tensors", partial(many_small, settings)
    yield "orthogonal 4096 x 4096", partial(orthogonal, 1, 4096, settings, (Wanted(15.0, "x torch"),))
    yield "orthogonal 48 of 1024 x 1024", partial(orthogonal, 48, 1024, settings, (Wanted(20.0, "x torch"),))
    yield "orthogonal 512 of 128 x 128", partial(orthogonal, 512, 128, settings, one_launch=True)
    for kind in ("uniform", "normal"):
        for dtype_name in ("float32", "bfloat16"):
            yield f"blend of {kind}, {dtype_name}", partial(blend, kind, dtype_name, settings)
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


def run_row(name: str, make: Callable[[], Work], settings: Settings) -> dict[str, Any]:
    """A row's figures, or what went wrong with it."""
    try:
        work = make()
        if work.one_launch and settings.on_gpu:
            before = native().cuda_launches()
            work.contestants["fastinit"]()
            work.notes["launches"] = native().cuda_launches() - before
            assert work.notes["launches"] == 1, f"{work.notes['launches']} launches, not one"
        return measure(work, settings)
    except Exception as error:  # whatever it is, the other rows are to be measured
        traceback.print_exc()
        return {"work": name, "error": f"{type(error).__name__}: {error}"}


def benchmark(arguments: argparse.Namespace) -> int:
    settings = Settings.of(arguments)
    if settings.on_gpu and not native().HAS_CUDA:
        raise SystemExit("the native code is built without CUDA; FASTINIT_BUILD=cuda, or make gpu")
    record = Record(arguments.out, afresh=not arguments.append)
    record.data["machine"] = machine()
    record.data["results"] = []
    record.save()
    failed = 0
    for name, make in works(settings, arguments.quick):
        before = time.perf_counter()
        result = run_row(name, make, settings)
        failed += "error" in result
        record.add("results", result)
        if settings.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - before:6.1f} s  {result['work']}", flush=True)
    if not arguments.append:
        print("\n" + render(record.data))
    return 1 if failed else 0


# ---- What sanitizers and profilers watch ----


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
            integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[target.dtype.itemsize]
            left, right = (each.tensor.cpu().contiguous().view(integers) for each in (target, twin))
            if not torch.equal(left, right):
                wrong += 1
                print(f"{target.name}: {target.distribution} in {target.dtype} differs from the CPU's")
    print(f"{len(ours)} tensors on {device}, {wrong} differences from the CPU")
    return 1 if wrong else 0


def wrong_orthogonal(device: torch.device) -> int:
    """How many of a few orthogonal matrices, of all that a block of threads can hold, are not orthogonal."""
    shapes = [(1, 1), (7, 5), (5, 7), (33, 33), (64, 27), (130, 40), (20, 150), (300, 12), (128, 128)]
    tensors = [torch.empty(shape, dtype=dtype, device=device) for dtype in DTYPES.values() for shape in shapes]
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


PROFILED = (
    ("uniform", "bfloat16"),
    ("normal", "bfloat16"),
    ("normal", "float32"),
    ("uniform", "float32"),
    ("trunc_normal", "float32"),
)
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "WarpStateStats",
    "InstructionStats",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "LaunchStats",
)
_PIPES = ("alu", "fma", "fmaheavy", "lsu", "xu")
METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_write.sum",
    "dram__bytes_read.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    *(f"sm__inst_executed_pipe_{pipe}.avg.pct_of_peak_sustained_active" for pipe in _PIPES),
    *(f"sm__inst_executed_pipe_{pipe}.sum" for pipe in _PIPES),
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "launch__registers_per_thread",
)
_KEPT_PREFIXES = ("smsp__average_warps_issue_stalled_", "launch__occupancy_limit_", "sm__maximum_warps_per")


def parse_counters(text: str) -> list[dict[str, Any]]:
    """From ncu's raw page as CSV: a line of names, a line of units, a line a kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, units, *kernels = list(csv.reader(io.StringIO("\n".join(lines))))
    found = []
    for place, kernel in enumerate(kernels):
        metrics: dict[str, Any] = {}
        for name, unit, value in zip(names, units, kernel, strict=True):
            if name not in METRICS and not name.startswith(_KEPT_PREFIXES):
                continue
            try:
                metrics[f"{name} [{unit}]" if unit else name] = float(value.replace(",", ""))
            except ValueError:
                continue
        label = "-".join(PROFILED[place]) if place < len(PROFILED) else f"kernel {place}"
        found.append({"kernel": label, "metrics": metrics})
    return found


def profile(arguments: argparse.Namespace) -> int:
    """Reads the hardware's counters with ncu, into gpu.json and ncu-fill_kernel.txt."""
    ncu = find_tool("ncu")
    if ncu is None:
        print("no ncu")
        return 1
    program = [sys.executable, str(THIS), *["--dry-run"] * arguments.dry_run]
    for kind, dtype_name in PROFILED:
        program += ["--one", kind, dtype_name]
    command = [ncu, "--clock-control", "none", "--target-processes", "all", "--kernel-name", "regex:fill_kernel"]
    command += ["--launch-count", str(len(PROFILED)), "--force-overwrite"]
    for section in SECTIONS:
        command += ["--section", section]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "counters.ncu-rep"
        # Which counters there are depends on the chip: one that is unknown must not take the others along.
        for chosen in (["--metrics", ",".join(METRICS)], []):
            result = subprocess.run([*command, *chosen, "-o", str(report), *program], check=False, cwd=ROOT)
            if result.returncode == 0 and report.exists():
                break
        if not report.exists():
            return 1
        read = [ncu, "--import", str(report), "--print-units", "base", "--page"]
        details = subprocess.run([*read, "details"], capture_output=True, text=True, check=False).stdout
        (arguments.out / "ncu-fill_kernel.txt").write_text(details, encoding="utf-8")
        raw = subprocess.run([*read, "raw", "--csv"], capture_output=True, text=True, check=False).stdout
    record = Record(arguments.out, afresh=False)
    record.data["counters"] = parse_counters(raw)
    record.save()
    return 0 if len(record.data["counters"]) == len(PROFILED) else 1


# ---- Everything: `make gpu` ----


def find_tool(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        for pattern in ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda-*/bin"):
            for path in sorted(Path("/").glob(f"{pattern[1:]}/{name}"), reverse=True):
                return str(path)
    return found


@dataclass(frozen=True)
class Part:
    """A command with a time limit. Its output goes into a log; a pattern picks the line that tells the outcome."""

    name: str
    command: Sequence[str]
    limit: float
    log: str
    telling: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = True


def telling_line(text: str, pattern: str) -> str:
    found = [line.strip(" =\n") for line in text.splitlines() if pattern and pattern in line]
    return found[-1][:150] if found else ""


class Runner:
    """Runs parts one after the other, whatever becomes of each, within one time limit."""

    def __init__(self, record: Record, out: Path, most_seconds: float) -> None:
        self._record, self._out = record, out
        self._deadline = time.monotonic() + most_seconds
        self.failed: list[str] = []

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def skip(self, name: str, why: str) -> None:
        self._note(name, 0.0, "not run", why, failed=False)

    def run(self, part: Part) -> bool:
        limit = min(part.limit, self.left())
        if limit < 5.0:
            self._note(part.name, 0.0, "not run", "no time was left", failed=part.required)
            return False
        print(f"---- {part.name} (at most {limit:.0f} s)", flush=True)
        before = time.monotonic()
        path = self._out / part.log
        begin = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            log.write(f"---- {part.name}: {' '.join(part.command)}\n".encode())
            log.flush()
            status = self._wait(part, log, limit)
        with path.open("rb") as log:
            log.seek(begin)
            text = log.read().decode(errors="replace")
        outcome = "passed" if status == 0 else "out of time" if status is None else f"failed ({status})"
        self._note(
            part.name,
            time.monotonic() - before,
            outcome,
            telling_line(text, part.telling),
            part.required and status != 0,
        )
        if status != 0:
            print("\n".join(text.splitlines()[-25:]), flush=True)
        return status == 0

    def _wait(self, part: Part, log: Any, limit: float) -> int | None:
        """The exit status, or None where the limit was reached. Nothing that the part started is left behind."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **part.environment}
        try:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self._signal(process, signal.SIGINT)  # pytest sums up what it has done so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10.0)
            return None
        finally:
            self._signal(process, signal.SIGKILL)
            process.wait()

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], which: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, which)

    def _note(self, name: str, seconds: float, outcome: str, detail: str, failed: bool) -> None:
        if failed:
            self.failed.append(name)
        entry = {"part": name, "outcome": outcome, "seconds": round(seconds, 1), "detail": detail}
        self._record.add("parts", entry)
        print(f"     {outcome}, {seconds:.1f} s  {detail}", flush=True)


CHECK = """
import torch
from fastinit import _native
assert _native.module is not None, _native.reason
assert _native.module.HAS_CUDA, "built without CUDA"
assert torch.cuda.is_available(), "no GPU"
print("found:", torch.cuda.get_device_name(), "and an extension for it")
"""


def pytest_command(*arguments: str) -> list[str]:
    # Deprecations in whatever packages lie there are no business of this suite, which takes warnings for errors.
    quiet = ["-W", "default::DeprecationWarning", "-W", "default::FutureWarning"]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", *quiet, *arguments]


def everything(arguments: argparse.Namespace) -> int:
    """Build, tests, sanitizer, benchmarks, counters; the rest of the test suite with the time that is left."""
    out: Path = arguments.out
    dry = arguments.dry_run
    own = [sys.executable, str(THIS), "--out", str(out)]
    own += ["--quick"] * arguments.quick + ["--dry-run"] * dry
    out.mkdir(parents=True, exist_ok=True)
    for old in ("build.log", "cuda-tests.log", "benchmarks.log", "sanitizer.log", "ncu-fill_kernel.txt", "tests.log"):
        (out / old).unlink(missing_ok=True)
    record = Record(out, afresh=True)
    record.data["machine"] = machine()
    record.save()
    runner = Runner(record, out, arguments.seconds)
    if not dry:
        arch = record.data["machine"].get("compute_capability")
        environment = {"FASTINIT_BUILD": "cuda"}
        if arch is not None:
            environment["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or arch
        build = [sys.executable, "setup.py", "build_ext", "--inplace"]
        runner.run(Part("build", build, 150.0, "build.log", environment=environment))
        runner.run(Part("check", [sys.executable, "-c", CHECK], 40.0, "build.log", "found:"))
    on_cpu = {"FASTINIT_TEST_CUDA_DEVICE": "cpu"} if dry else {}
    runner.run(
        Part("CUDA tests", pytest_command("tests/test_cuda.py"), 120.0, "cuda-tests.log", " in ", environment=on_cpu)
    )
    runner.run(Part("benchmarks", [*own, "--append"], 150.0, "benchmarks.log"))
    sanitizer = find_tool("compute-sanitizer")
    # Without torch's cache of memory, a tensor's neighbours are not another tensor's, and a write outside is seen.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool, options in (("memcheck", ["--report-api-errors", "no"]), ("racecheck", [])):
        if sanitizer is None:
            runner.skip(tool, "no compute-sanitizer")
            continue
        # All our kernels have the namespace in their names.
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *options, "--kernel-name", "kns=fastinit"]
        command += [sys.executable, str(THIS), "--small-plan", *["--dry-run"] * dry]
        runner.run(Part(tool, command, 75.0, "sanitizer.log", "SUMMARY", uncached))
    if arguments.quick or find_tool("ncu") is None:
        runner.skip("counters", "asked to be quick" if arguments.quick else "no ncu")
    else:
        runner.run(Part("counters", [*own, "--profile"], 90.0, "benchmarks.log", "==ERROR==", required=False))
    # Without what takes long, if there is little time.
    chosen = "not cuda" if runner.left() > 180.0 else "not cuda and not slow"
    rest = pytest_command("tests", "-m", chosen, *["--collect-only"] * dry)
    if arguments.gpu_only:
        runner.skip("other tests", "asked for what needs a GPU")
    else:
        runner.run(Part("other tests", rest, runner.left(), "tests.log", " in "))
    record.load()
    print("\n" + render(record.data))
    print(f"\nin {out}; " + (f"FAILED: {', '.join(runner.failed)}" if runner.failed else "all parts passed"))
    return 1 if runner.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="the folder for gpu.json and gpu.txt")
    parser.add_argument("--all", action="store_true", help="build, tests, sanitizer, benchmarks, counters")
    parser.add_argument("--quick", action="store_true", help="smaller tensors, fewer samples, no counters")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: figures mean nothing")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="with --all: the most that it may take")
    parser.add_argument("--gpu-only", action="store_true", help="with --all: without tests that need no GPU")
    parser.add_argument("--append", action="store_true", help="add to the gpu.json that is there")
    parser.add_argument("--small-plan", action="store_true", help="a few MB of everything, for sanitizers")
    parser.add_argument(
        "--one", nargs=2, metavar=("KIND", "DTYPE"), action="append", help="1 GiB of it, for a profiler"
    )
    parser.add_argument("--profile", action="store_true", help="the counters, with ncu")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if arguments.all:
        return everything(arguments)
    if arguments.small_plan:
        return small_plan(arguments)
    if arguments.one:
        return one_launch_each(arguments)
    if arguments.profile:
        return profile(arguments)
    return benchmark(arguments)


if __name__ == "__main__":
    sys.exit(main())
