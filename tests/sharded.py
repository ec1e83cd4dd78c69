"""Small models, and the ways in which torch spreads a model over a mesh. Everything here is torch's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import zoo
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import fastinit
from fastinit import Rule

# ---- models, whose sizes no mesh here divides evenly, and the rules that they need ----


def llama() -> zoo.Llama:
    return zoo.Llama(20, 3, 50, key_width=10, hidden=31)


def tied_llama() -> zoo.Llama:
    """The output is tied to the embedding, which has a padding row."""
    model = llama()
    model.tok_embeddings = nn.Embedding(50, 20, padding_idx=17)
    model.output.weight = model.tok_embeddings.weight
    return model


class Conv1D(nn.Module):
    """transformers' layer: a weight of (in, out)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))


class _GPTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(3 * width, width), "c_proj": Conv1D(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(4 * width, width), "c_proj": Conv1D(width, 4 * width)})


class GPT(nn.Module):
    """transformers' names of GPT-2, with its tied head."""

    def __init__(self, width: int = 14, depth: int = 2, vocabulary: int = 37) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(11, width)
        self.h = nn.ModuleList(_GPTBlock(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight


class Mixture(nn.Module):
    """Experts in one tensor and in a list, convolutions, gates of an LSTM, odd shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(3, 6, 10))
        self.down_proj = nn.Parameter(torch.empty(3, 5, 6))
        self.experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(3))
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose1d(5, 3, 2)
        self.lstm = nn.LSTM(6, 5)
        self.qkv = nn.Linear(9, 21)
        self.column = nn.Parameter(torch.empty(7, 1))
        self.row = nn.Parameter(torch.empty(1, 9))
        self.none = nn.Parameter(torch.empty(0, 4))


class Patterns(nn.Module):
    """A parameter for every kind of value that is not sampled element by element."""

    kernel_size = 3  # so that three dimensions and more are kernels of convolutions

    def __init__(self) -> None:
        super().__init__()
        for name, (shape, _) in PATTERNS.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.padded_sparse = nn.Embedding(13, 6, padding_idx=9)
        self.padded_log_range = nn.Embedding(8, 5, padding_idx=-2)


PATTERNS: dict[str, tuple[tuple[int, ...], Any]] = {
    "constant": ((7,), fastinit.Constant(0.3)),
    "eye": ((9, 7), "eye"),
    "eye_wide": ((5, 11), "eye"),
    "eye_blocks": ((12, 5), Rule("eye_blocks", "eye", split=(3, 5, 4))),
    "dirac": ((6, 4, 3, 3), "dirac"),
    "dirac_groups": ((9, 2, 3), fastinit.Dirac(groups=3)),
    "sparse": ((13, 7), fastinit.Sparse(0.4, 0.5)),
    "sparse_blocks": ((6, 14), Rule("sparse_blocks", fastinit.Sparse(0.4), split=(5, 9), split_dim=1)),
    "zer_o": ((5, 12), "zer_o"),
    "hadamard": ((12, 5), "zer_o"),
    "hadamard_kernel": ((7, 3, 3, 2), "zer_o"),
    "log_range": ((5, 9), "log_range"),
    "time_step": ((11,), "time_step"),
    "log_of_uniform": ((11, 3), "log_of_uniform"),
    "ramp": ((5, 9), fastinit.Ramp(0.5, -1.0)),
    "one_block_random": ((8, 9), Rule("one_block_random", ("zeros", "normal", "eye"), split=(2, 5, 1))),
    "delta_orthogonal": ((9, 4, 3, 3), "delta_orthogonal"),
    "orthogonal": ((11, 6), "orthogonal"),
    "orthogonal_wide": ((6, 11), "orthogonal"),
    "orthogonal_kernel": ((6, 4, 3, 3), "orthogonal"),
    "orthogonal_axis": ((6, 4, 3), fastinit.Orthogonal(column_axis=1)),
    "orthogonal_blocks": ((9, 12), Rule("orthogonal_blocks", "orthogonal", split=3, split_dim=1)),
    "svd": ((9, 7), fastinit.Spectral("linear")),
    "svd_kernel": ((5, 3, 4), fastinit.Spectral("power")),
    "identity_plus": ((8, 8), "identity_plus_orthogonal"),
}


class Stacks(nn.Module):
    """Stacks of maps, of which each has a pattern of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name, (shape, _) in STACKS.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


STACKS: dict[str, tuple[tuple[int, ...], Any]] = {
    "orthogonal": ((5, 4, 6), "orthogonal"),
    "orthogonal_halves": ((3, 6, 5), Rule("orthogonal_halves", ("orthogonal", "normal"), split=2)),
    "orthogonal_stacks": ((2, 3, 5, 4), "orthogonal"),
    "svd": ((3, 4, 5), fastinit.Spectral("linear")),
    "identity_plus": ((4, 3, 3), "identity_plus_orthogonal"),
    "eye": ((5, 3, 4), "eye"),
    "sparse": ((3, 7, 4), fastinit.Sparse(0.4, 0.5)),
    "zer_o": ((3, 6, 4), "zer_o"),
}
# Products of matrices, which are the same to rounding only.
PRODUCTS = ("delta_orthogonal", "orthogonal", "svd", "identity_plus")

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "llama": (llama, {}),
    "tied_llama": (tied_llama, {}),
    "gpt": (GPT, {"rules": [Rule("*.c_attn.weight", ("xavier_uniform", "normal", "zeros"), split=3)], "fan": "module"}),
    "mixture": (
        Mixture,
        {
            "rules": [
                Rule("qkv.weight", ("normal", "trunc_normal"), split=(7, 14)),
                Rule("none", "normal"),
                Rule("column", "normal"),
                Rule("row", "normal"),
                Rule("conv.bias", fastinit.Uniform(-0.5, 0.25)),
            ],
            "fan": "module",
        },
    ),
    "patterns": (
        Patterns,
        {
            "rules": [
                *(rule if isinstance(rule, Rule) else Rule(name, rule) for name, (_, rule) in PATTERNS.items()),
                Rule("padded_sparse.weight", fastinit.Sparse(0.4)),
                Rule("padded_log_range.weight", "log_range"),
            ]
        },
    ),
    "stacks": (
        Stacks,
        {"rules": [rule if isinstance(rule, Rule) else Rule(name, rule) for name, (_, rule) in STACKS.items()]},
    ),
}


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """What this rank holds of every parameter; of tied ones, under every name."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()
    return found


# ---- layouts: a model and a mesh; the model is spread over the mesh, in place ----


def stacks(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model, which are units of FSDP2."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from child.children()


def fsdp(model: nn.Module, mesh: DeviceMesh, **options: Any) -> None:
    """FSDP2; HSDP on a mesh of two dimensions."""
    for layer in stacks(model):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def fsdp_offloaded(model: nn.Module, mesh: DeviceMesh) -> None:
    fsdp(model, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


def fsdp_columns(model: nn.Module, mesh: DeviceMesh) -> None:
    """The last dimension of matrices where the mesh divides it, which FSDP2 asks for; else the first."""

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(parameter.dim() - 1 if parameter.shape[-1] % mesh.size() == 0 else 0)

    fsdp(model, mesh, shard_placement_fn=placement)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """torchtitan's plan for a Llama."""
    is_tied = model.output.weight is model.tok_embeddings.weight
    outer = {"tok_embeddings": RowwiseParallel(), "norm": SequenceParallel(), "output": ColwiseParallel()}
    parallelize_module(model, mesh, outer, src_data_rank=None)
    for layer in stacks(model):
        plan = {
            **{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")},
            **{f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")},
            **{name: RowwiseParallel() for name in ("attention.wo", "feed_forward.w2")},
            **{name: SequenceParallel() for name in ("attention_norm", "ffn_norm")},
        }
        parallelize_module(layer, mesh, plan, src_data_rank=None)
    if is_tied:  # which the modules' own parameters no longer are
        assert isinstance(model.output, nn.Module) and isinstance(model.tok_embeddings, nn.Module)
        model.output.weight = model.tok_embeddings.weight


def fsdp_over_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    names = mesh.mesh_dim_names
    assert names is not None
    tensor_parallel(model, mesh[names[-1]])
    fsdp(model, mesh[names[:-1]])


WORLD_OF_1024 = (128, 8)  # FSDP2 over tensor parallelism


def llama_405b(depth: int = 126) -> zoo.Llama:
    """Llama 3.1 405B: 126 layers, 128 heads of 128, 8 of them for keys and values."""
    with torch.device("meta"):
        return zoo.Llama(16384, depth, 128256, key_width=1024, hidden=53248)


def llama_405b_on_rank(rank: int, depth: int = 126) -> zoo.Llama:
    """As this rank of 1024 has it; this process must be that rank."""
    mesh = init_device_mesh("cpu", WORLD_OF_1024, mesh_dim_names=("data", "tensor"))
    assert mesh.get_coordinate() == divmod(rank, WORLD_OF_1024[1])
    model = llama_405b(depth)
    fsdp_over_tensor_parallel(model, mesh)
    return model


def spread(turn: int) -> Callable[[nn.Module, DeviceMesh], None]:
    """Every parameter by distribute_tensor; over the turns, every parameter with every placement."""

    def spread_out(model: nn.Module, mesh: DeviceMesh) -> None:
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        made[id(parameter)] = _distributed(parameter, mesh, turn + len(made))
                    setattr(module, name, made[id(parameter)])

    return spread_out


def turns(model: nn.Module, mesh: DeviceMesh) -> int:
    return max(len(_placements(parameter, mesh)) for parameter in model.parameters())


def _placements(parameter: torch.Tensor, mesh: DeviceMesh) -> list[tuple[Placement, ...]]:
    each: list[Placement] = [Replicate(), *(Shard(dim) for dim in range(parameter.dim()))]
    return list(itertools.product(each, repeat=mesh.ndim))


def _distributed(parameter: nn.Parameter, mesh: DeviceMesh, which: int) -> nn.Parameter:
    choices = _placements(parameter, mesh)
    placements = choices[which % len(choices)]
    spread_out: DTensor = distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None)
    return nn.Parameter(spread_out, requires_grad=parameter.requires_grad)


LAYOUTS: dict[str, Callable[[nn.Module, DeviceMesh], None]] = {
    "fsdp": fsdp,
    "offloaded": fsdp_offloaded,
    "columns": fsdp_columns,
    "tensor_parallel": tensor_parallel,
    "fsdp_over_tensor_parallel": fsdp_over_tensor_parallel,
}
