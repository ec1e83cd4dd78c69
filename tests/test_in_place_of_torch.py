"""fastinit.functional in place of torch.nn.init: everything of torch.nn can be built, wherever torch can build it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import needs_native
from test_torch_parity import IN_PLACE, OURS, RANDOM, call, sevens, shape_for
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

import fastinit
from fastinit import functional

EVERY = [*OURS, "spectral_"]
through_torch = pytest.mark.filterwarnings("ignore::fastinit.FallbackWarning")


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name of ours that is none of Python's is put into torch.nn.init, what torch has not included."""
    for name in dir(functional):
        if not name.startswith("__"):
            monkeypatch.setattr(nn.init, name, getattr(functional, name), raising=False)
    assert nn.init.uniform_ is functional.uniform_


# A module of every class of torch.nn that initialises parameters.
MODULES: dict[str, tuple[Any, ...]] = {
    "AdaptiveLogSoftmaxWithLoss": (16, 12, [4, 8], 2.0),
    **{f"BatchNorm{n}d": (4,) for n in (1, 2, 3)},
    "Bilinear": (3, 4, 5),
    **{f"Conv{n}d": (4, 6, 3) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (4, 6, 3) for n in (1, 2, 3)},
    "Embedding": (10, 4, 0),
    "EmbeddingBag": (10, 4),
    "GRU": (3, 4),
    "GRUCell": (3, 4),
    "GroupNorm": (2, 4),
    **{f"InstanceNorm{n}d": (4, 1e-5, 0.1, True) for n in (1, 2, 3)},
    "LSTM": (3, 4, 2),
    "LSTMCell": (3, 4),
    "LayerNorm": (4,),
    **{f"LazyBatchNorm{n}d": () for n in (1, 2, 3)},
    **{f"LazyConv{n}d": (6, 3) for n in (1, 2, 3)},
    **{f"LazyConvTranspose{n}d": (6, 3) for n in (1, 2, 3)},
    **{f"LazyInstanceNorm{n}d": (1e-5, 0.1, True) for n in (1, 2, 3)},
    "LazyLinear": (4,),
    "Linear": (3, 4),
    "LinearCrossEntropyLoss": (4, 6),
    "MultiheadAttention": (8, 2, 0.0, True, True),
    "PReLU": (4,),
    "RMSNorm": (4,),
    "RNN": (3, 4),
    "RNNBase": ("LSTM", 3, 4),
    "RNNCell": (3, 4),
    "RNNCellBase": (3, 4, True, 4),
    "SyncBatchNorm": (4,),
    "Transformer": (8, 2, 1, 1, 16, 0.1, "relu", None, None, 1e-5, True),
    "TransformerDecoderLayer": (8, 2, 16),
    "TransformerEncoderLayer": (8, 2, 16),
}
HERE = [name for name in MODULES if hasattr(nn, name)]  # older releases of torch lack some
# Torch cannot make a lazy parameter of a fake tensor, nor copy fake layers.
OF_FAKES = [name for name in HERE if not name.startswith("Lazy") and name != "Transformer"]


def build(name: str) -> nn.Module:
    module: nn.Module = getattr(nn, name)(*MODULES[name])
    return module


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    return [each for each in module.parameters() if not nn.parameter.is_lazy(each)]


def test_the_list_of_modules_is_whole() -> None:
    classes = {name: each for name, each in vars(nn).items() if inspect.isclass(each) and issubclass(each, nn.Module)}
    resetting = {
        name
        for name, each in classes.items()
        if hasattr(each, "reset_parameters") or hasattr(each, "_reset_parameters")
    }
    assert resetting <= set(MODULES)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", HERE)
def test_modules_are_built_and_their_values_come_from_us(name: str) -> None:
    torch.manual_seed(0)
    module = build(name)
    torch.manual_seed(0)
    again = build(name)
    for tensor, other in zip(tensors_of(module), tensors_of(again), strict=True):
        assert tensor.isfinite().all() and torch.equal(tensor, other)
        assert tensor.dim() < 2 or tensor.std() > 0


@pytest.mark.usefixtures("in_place")
def test_a_layers_values_are_those_of_our_functions() -> None:
    torch.manual_seed(3)
    layer = nn.Linear(6, 5)
    torch.manual_seed(3)
    assert torch.equal(layer.weight, functional.kaiming_uniform_(torch.empty(5, 6), a=5**0.5))
    assert torch.equal(layer.bias, functional.uniform_(torch.empty(5), -(6**-0.5), 6**-0.5))


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", HERE)
def test_modules_are_built_on_the_meta_device(name: str) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        module = build(name)
    assert all(tensor.is_meta for tensor in tensors_of(module))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", OF_FAKES)
def test_modules_are_built_of_fake_tensors(name: str) -> None:
    with FakeTensorMode():
        module = build(name)
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors_of(module))


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize(("kind", "arguments"), [(nn.Linear, (2, 3)), (nn.Conv2d, (2, 2, 3)), (nn.Embedding, (5, 3))])
def test_skip_init_leaves_memory_without_values(kind: type[nn.Module], arguments: tuple[int, ...]) -> None:
    state = torch.get_rng_state()
    module = nn.utils.skip_init(kind, *arguments)  # type: ignore[no-untyped-call]
    assert not any(tensor.is_meta for tensor in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# What goes through torch reaches torch's own functions.


@through_torch
@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", ["uniform_", "normal_", "orthogonal_", "sparse_", "xavier_normal_", "constant_"])
def test_complex_values_do_not_recurse(name: str) -> None:
    tensor = call(nn.init, name, torch.full((4, 3), torch.nan, dtype=torch.complex64))
    assert tensor.isfinite().all()


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("scheme", ["uniform", "normal", "trunc_normal", "zeros", "kaiming_normal", "eye"])
def test_the_backend_torch_does_not_recurse(scheme: str) -> None:
    tensor = torch.full((4, 3), torch.nan)
    fastinit.init_([tensor], scheme, seed=0, backend="torch")
    assert tensor.isfinite().all()


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("nonlinearity", ["linear", "relu", "selu", "gelu"])
def test_gains_do_not_recurse(nonlinearity: Any) -> None:
    assert nn.init.calculate_gain(nonlinearity) >= 0.75
    assert nn.init.calculate_gain("leaky_relu", 1.0) == 1.0


class Seen(TorchFunctionMode):
    """Notes every function of torch that is called, and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("scheme", ["uniform", "normal", "zeros"])
def test_modes_do_not_lead_from_torchs_functions_back_to_ours(scheme: str) -> None:
    with Seen() as seen:
        fastinit.init_([torch.empty(4, 3)], scheme, seed=0, backend="torch")
    assert torch.Tensor.fill_ in seen.functions or len(seen.functions) > 1
    assert not {functional.uniform_, functional.normal_, functional.constant_} & set(seen.functions)


# Tensors without memory


@pytest.mark.parametrize("name", EVERY)
def test_nothing_happens_to_meta_tensors_as_in_torch(name: str) -> None:
    tensor = torch.empty(shape_for(name), device="meta")
    state = torch.get_rng_state()
    if name in IN_PLACE:
        assert call(nn.init, name, tensor) is tensor
    assert call(functional, name, tensor) is tensor
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_happens_to_fake_tensors_as_in_torch(name: str) -> None:
    state = torch.get_rng_state()
    with FakeTensorMode():
        tensor = torch.empty(shape_for(name))
        if name in ("uniform_", "normal_", "constant_", "xavier_uniform_", "eye_"):  # torch's others fail, or copy
            assert call(nn.init, name, tensor) is tensor
        assert call(functional, name, tensor) is tensor
    assert call(functional, name, tensor) is tensor
    assert torch.equal(torch.get_rng_state(), state)


@needs_native  # torch's numbers come in the order of the calls
@pytest.mark.parametrize("name", RANDOM)
def test_tensors_beside_those_without_memory_get_the_values_of_their_positions(name: str) -> None:
    def fill(middle: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        filled: list[torch.Tensor] = call(functional, name, [sevens(shape_for(name)), *middle, sevens(shape_for(name))])
        return filled

    with FakeTensorMode():
        fake = torch.empty(shape_for(name))
    expected = fill([sevens(shape_for(name)), sevens(shape_for(name))])
    given = fill([torch.empty(shape_for(name), device="meta"), fake])
    assert torch.equal(given[0], expected[0]) and torch.equal(given[3], expected[3])
    assert given[1].is_meta and given[2] is fake


def test_arguments_for_meta_tensors_are_checked_as_for_others() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        functional.xavier_uniform_(torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match="std"):
        functional.normal_(torch.empty(3, device="meta"), std=-1.0)


def test_lists_and_models_go_on_refusing_the_meta_device() -> None:
    with pytest.raises(ValueError, match="meta device"):
        fastinit.init_([torch.empty(3, device="meta")], "normal")
    with pytest.raises(ValueError, match="meta device"):
        fastinit.init_model_(nn.Linear(3, 3, device="meta"), "normal")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    """One process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("world")
def test_nothing_happens_to_dtensors_on_the_meta_device() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    tensor = distribute_tensor(torch.empty(4, 3, device="meta"), mesh, [Shard(0)])
    assert functional.normal_(tensor) is tensor and tensor.to_local().is_meta


def test_memory_given_inside_fake_mode_is_refused() -> None:
    tensor = sevens((3,))
    with FakeTensorMode(), pytest.raises(ValueError, match=r"^tensor: .*FakeTensorMode"):
        functional.normal_(tensor)
    assert (tensor == 7).all()


# Other surroundings

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta as the default device": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "a function mode": Seen,
}
if torch.amp.is_autocast_available("cpu"):
    MODES["autocast"] = lambda: torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OURS)
def test_values_do_not_depend_on_the_surroundings(name: str, mode: str) -> None:
    expected, given = sevens(shape_for(name)), sevens(shape_for(name))
    torch.manual_seed(0)
    call(functional, name, expected)
    torch.manual_seed(0)
    with MODES[mode]():
        assert call(functional, name, given) is given
    assert torch.equal(given, expected)


TRANSFORMS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "vmap": lambda function: torch.func.vmap(function)(torch.zeros(3, 6, 4)),
    "grad": lambda function: torch.func.grad(lambda tensor: function(tensor).sum())(torch.zeros(6, 4)),
    "functionalize": lambda function: torch.func.functionalize(function)(torch.zeros(6, 4)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_tensors_inside_transforms_are_refused(transform: str) -> None:
    with pytest.raises(TypeError, match=r"^tensor: expected a plain tensor, got one inside torch.func"):
        TRANSFORMS[transform](functional.normal_)
    with pytest.raises(TypeError, match=r"^0: expected a plain tensor, got one inside torch.func"):
        TRANSFORMS[transform](lambda tensor: fastinit.init_([tensor], "normal"))


# torch.compile


@needs_native
@pytest.mark.parametrize("name", EVERY)
def test_compiled_functions_call_ours(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda tensor: call(functional, name, tensor + 1) * 2, backend="eager")
    for seed in range(2):
        torch.manual_seed(seed)
        expected = call(functional, name, sevens(shape_for(name))) * 2
        torch.manual_seed(seed)
        assert torch.equal(compiled(sevens(shape_for(name))), expected)


def test_errors_come_out_of_compiled_functions() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda tensor: functional.xavier_uniform_(tensor), backend="eager")
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        compiled(torch.empty(3))


@pytest.mark.slow
def test_the_compiler_is_not_imported_for_calls_outside_of_it() -> None:
    program = "import sys, torch, fastinit; fastinit.normal_(torch.empty(3)); print('torch._dynamo' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert run.stdout == "False\n"
