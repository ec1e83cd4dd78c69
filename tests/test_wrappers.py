"""A wrapper changes no value: models before and after everything that people put around them."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import needs_native
from torch import nn

import fastinit
from fastinit.run.names import named_modules, named_parameters, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore::fastinit.UncoveredWarning")


class CenteredRMSNorm(nn.Module):
    """Computes 1 + w, as Gemma's norms do: recognised by the name of its class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1.0 + self.weight)


class GemmaRMSNorm(CenteredRMSNorm):
    pass


class Inner(nn.Module):
    """A model's own attribute `module`, which is no wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.module(x)
        return y


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), GemmaRMSNorm(6), Inner())


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.PReLU(), nn.Conv2d(6, 4, 3, groups=2))


def recurrent() -> nn.Module:
    return nn.ModuleDict({"embed": nn.Embedding(9, 4, padding_idx=1), "lstm": nn.LSTM(4, 6), "cell": nn.GRUCell(4, 6)})


def tied() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(8, 6), "norm": GemmaRMSNorm(6), "head": nn.Linear(6, 8, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16)


MODELS = (block, convolutional, recurrent, tied, attention)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process as a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, (nn.Linear, nn.Conv2d)))
    return model


def fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    if isinstance(model, nn.ModuleDict):  # in one group, in which ties stay
        fully_shard(list(model.children()), mesh=mesh)
        return model
    for child in model.children():
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def replicated(model: nn.Module) -> nn.Module:
    from torch.distributed._composable.replicate import replicate

    return replicate(model)


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


def fabric(model: nn.Module) -> nn.Module:
    """As Lightning Fabric's `setup` leaves a module: under `_forward_module`, and again as the original."""

    class _FabricModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._forward_module = model
            self._original_module = model

    return _FabricModule()


def twice(model: nn.Module) -> nn.Module:
    return compiled(data_parallel(model))


def quantisation_aware(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and used
        model.train()
        model.qconfig = get_default_qat_qconfig("x86")  # type: ignore[assignment]
        made = prepare_qat(model)
    assert isinstance(made, nn.Module)
    return made


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    made = pickle.loads(pickle.dumps(model))
    assert isinstance(made, nn.Module)
    return made


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """By canonical name, whole."""
    found = {}
    for name, _, parameter in named_parameters(model):
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name] = whole.detach().clone()
    return found


WRAPPERS: tuple[Callable[[nn.Module], nn.Module], ...] = (
    ddp, data_parallel, compiled, checkpointed, fsdp2, replicated, averaged, fabric, twice, copied, pickled,
)  # fmt: skip


@needs_native
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_wrapping_changes_no_value(make: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module]) -> None:
    wanted = values(fastinit.init_model_(make(), "kaiming_normal", seed=5))
    found = values(fastinit.init_model_(wrap(make()), "kaiming_normal", seed=5))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@needs_native
@pytest.mark.parametrize("make", [block, convolutional], ids=lambda make: make.__name__)
def test_the_fakes_of_quantisation_aware_training_change_no_value(make: Callable[[], nn.Module]) -> None:
    wanted = values(fastinit.init_model_(make(), "kaiming_normal", seed=5))
    found = values(fastinit.init_model_(quantisation_aware(make()), "kaiming_normal", seed=5))
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@needs_native
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_within_summon_full_params(use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    wanted = values(fastinit.init_model_(block(), "kaiming_normal", seed=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, or on a CPU
        model = FullyShardedDataParallel(
            block(), device_id=torch.device("cpu"), use_orig_params=use_orig_params, sync_module_states=False
        )
        with FullyShardedDataParallel.summon_full_params(model, writeback=True):
            fastinit.init_model_(model, "kaiming_normal", seed=5)
            found = values(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_names_lose_module_only_where_a_wrapper_stands() -> None:
    assert [each.name for each in named_modules(nn.DataParallel(block()))] == [
        "", "", "0", "1", "2", "3", "3.module",
    ]  # fmt: skip
    assert [name for name, _, _ in named_parameters(Inner())] == ["module.weight", "module.bias"]


def test_the_order_of_names_is_torchs() -> None:
    for make in MODELS:
        model = nn.DataParallel(make())
        assert [each.full_name for each in named_modules(model)] == [name for name, _ in model.named_modules()]
        full = [full_name for _, full_name, _ in named_parameters(model)]
        assert full == [name for name, _ in model.named_parameters()]


def test_rules_match_the_name_in_the_model_and_the_canonical_one() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    rules = [("module.0.weight", "ones"), ("1.weight", "zeros")]
    rows = {row.name: row for row in fastinit.plan(model, "normal", rules, strict=True).rows}
    assert [rows[name].distribution.mean() for name in ("0.weight", "1.weight")] == [1.0, 0.0]


def test_a_model_is_found_within_its_wrappers() -> None:
    model = block()
    assert unwrapped(twice(model)) is model
    assert unwrapped(Inner()).module is not None


def test_a_class_of_ones_own_may_end_like_its_base() -> None:
    class LinearFSDPLinear(nn.Linear):
        pass

    assert fastinit.plan(LinearFSDPLinear(2, 2), "normal").rows[0].kind == "LinearFSDPLinear"


class Scriptable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 8, 3, groups=2), nn.LayerNorm(8)
        self.table, self.lstm = nn.Embedding(5, 8, padding_idx=0), nn.LSTM(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.lstm(self.conv(x).transpose(1, 2) + self.table.weight.sum())[0].repeat(1, 1, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "own"])
def test_a_scripted_model_is_what_it_was_made_from(scheme: str, whole: bool) -> None:
    plain = nn.Sequential(Scriptable(), nn.Linear(8, 3))
    scripted = torch.jit.script(plain) if whole else nn.Sequential(torch.jit.script(plain[0]), nn.Linear(8, 3))
    of_plain = fastinit.plan(plain, scheme, seed=0, fan="module")
    of_scripted = fastinit.plan(scripted, scheme, seed=0, fan="module")
    assert [row[:3] + row[6:7] + row[8:] for row in of_plain.rows] == [
        row[:3] + row[6:7] + row[8:] for row in of_scripted.rows
    ]
    of_plain.run_(), of_scripted.run_()
    for one, other in zip(plain.parameters(), scripted.parameters(), strict=True):
        assert torch.equal(one, other)
    assert fastinit.verify(scripted, of_scripted) == ()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_model_is_refused() -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU()), torch.randn(2, 4, 9))
    before = [each.detach().clone() for each in traced.parameters()]
    with pytest.raises(TypeError, match=r"^model: expected modules .*, got a Conv1d of torch\.jit\.trace"):
        fastinit.init_model_(traced, "kaiming_normal", seed=0)
    assert all(map(torch.equal, before, traced.parameters()))
