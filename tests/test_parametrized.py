"""Weights that are computed from others: the scheme governs what the module uses, not what it stores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from conftest import library_of_models
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastinit
from fastinit import KEEP, Constant, Normal, Rule, Uniform, Where

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.nn\.utils\.weight_norm` is deprecated:FutureWarning")


class Doubled(nn.Module):
    """An invertible parametrization: effective = 2 * original."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2.0


class Shifted(nn.Module):
    """effective = original + 1; together with Doubled it depends on the order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1.0

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x - 1.0


class Exponential(nn.Module):
    """effective = exp(original): nothing below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Summed(nn.Module):
    """effective = a + b."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def right_inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.25 * x, 0.75 * x


class Symmetric(nn.Module):
    """The upper triangle, mirrored; it has no right_inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu() + x.triu(1).mT


class Product(nn.Module):
    """effective = a b; it has no right_inverse that could be called now."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b


class WrongShape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT.contiguous() if self.__dict__.get("broken") else x


def parametrised(module: nn.Module, *chain: nn.Module, name: str = "weight") -> nn.Module:
    for each in chain:
        parametrize.register_parametrization(module, name, each)
    return module


def linear() -> nn.Linear:
    return nn.Linear(12, 9)


# Every one can represent any weight without zero rows.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "weight_norm of columns": lambda: parametrizations.weight_norm(linear(), dim=1),
    "weight_norm of the whole": lambda: parametrizations.weight_norm(linear(), dim=None),  # type: ignore[arg-type]
    "weight_norm of a convolution": lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
    "weight_norm of a transposed convolution": lambda: parametrizations.weight_norm(nn.ConvTranspose1d(6, 4, 3), dim=1),
    "weight_norm of an embedding": lambda: parametrizations.weight_norm(nn.Embedding(20, 5)),
    "older weight_norm": lambda: nn.utils.weight_norm(linear()),
    "older weight_norm of columns": lambda: nn.utils.weight_norm(linear(), dim=1),
    "older weight_norm of the whole": lambda: nn.utils.weight_norm(linear(), dim=None),  # type: ignore[arg-type]
    "older weight_norm of a convolution": lambda: nn.utils.weight_norm(nn.Conv1d(4, 6, 3)),
    "one's own": lambda: parametrised(linear(), Doubled()),
    "two originals": lambda: parametrised(linear(), Summed()),
    "a chain": lambda: parametrised(linear(), Doubled(), Shifted()),
    "a chain on two originals": lambda: parametrised(linear(), Summed(), Doubled(), Shifted()),
    "a chain on weight_norm": lambda: parametrised(parametrizations.weight_norm(linear()), Doubled()),
}
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def plain(module: nn.Module, scheme: object, *, name: str = "weight", seed: int = 3, **arguments: str) -> torch.Tensor:
    """What the same weight gets where nothing is parametrised."""
    tensor = torch.empty_like(getattr(module, name.rpartition(".")[2])).detach()
    fastinit.init_([tensor], scheme, names=[name], seed=seed, **arguments)  # type: ignore[arg-type]
    return tensor


def run_forward(module: nn.Module) -> torch.Tensor:
    if isinstance(module, nn.Embedding):
        inputs = torch.arange(4)
    elif isinstance(module, nn.Linear):
        inputs = torch.ones(2, module.in_features)
    else:
        inputs = torch.ones(2, module.in_channels, *(7 for _ in module.kernel_size))  # type: ignore[arg-type,union-attr]
    output: torch.Tensor = module(inputs)
    return output


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for a few roundings of float32."""
    return torch.allclose(a, b, rtol=8 * 2**-24, atol=8 * 2**-24 * float(b.detach().abs().max()))


@each_module
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("scheme", ["xavier_uniform", Normal(0.3, 2.0)], ids=["xavier_uniform", "normal"])
def test_the_weight_in_effect_follows_the_scheme(make: Callable[[], nn.Module], scheme: object, backend: str) -> None:
    module = make()
    expected = plain(module, scheme, backend=backend)
    fastinit.init_model_(module, scheme, seed=3, backend=backend)  # type: ignore[arg-type]
    assert close(module.weight, expected)  # type: ignore[arg-type]
    run_forward(module)
    assert close(module.weight, expected)  # type: ignore[arg-type]


@each_module
def test_after_a_forward_pass_it_does_so_too(make: Callable[[], nn.Module]) -> None:
    module = make()
    run_forward(module)
    fastinit.init_model_(module, "xavier_uniform", seed=3)
    fresh = fastinit.init_model_(make(), "xavier_uniform", seed=3)
    outcome = run_forward(module)
    assert torch.equal(outcome, run_forward(fresh))
    assert close(module.weight, plain(module, "xavier_uniform"))  # type: ignore[arg-type]


@each_module
def test_running_twice_does_not_compound(make: Callable[[], nn.Module]) -> None:
    module = make()
    plan = fastinit.plan(module, "normal", seed=1)
    plan.run_()
    first = {name: value.clone() for name, value in module.state_dict().items()}
    plan.run_()
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())
    fastinit.init_model_(module, "normal", seed=1)
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())


@each_module
def test_planning_changes_nothing_and_draws_nothing(make: Callable[[], nn.Module]) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    print(fastinit.plan(module, "normal", seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@each_module
def test_the_plan_has_the_weight_and_its_originals(make: Callable[[], nn.Module]) -> None:
    module = make()
    plan = fastinit.plan(module, "kaiming_normal", strict=True)
    rows = {row.name: row for row in plan.rows}
    stored = {name for name, _ in module.named_parameters()} - {"bias"}
    assert set(rows) == {"weight", "bias"} & set(rows) | stored
    weight = rows["weight"]
    assert weight.action == "init" and weight.distribution is not None
    assert weight.tensor.shape == module.weight.shape  # type: ignore[union-attr]
    assert "; set through " in weight.reason
    for name in stored:
        assert rows[name].action == "original" and rows[name].reason == "holds weight"
    assert plan.uncovered == ()
    assert f"{plan.numel:,} elements" in plan.summary()
    assert plan.numel == weight.tensor.numel() + (rows["bias"].tensor.numel() if "bias" in rows else 0)


@each_module
def test_parameters_stay_the_same_objects(make: Callable[[], nn.Module]) -> None:
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    run_forward(module).square().sum().backward()
    optimizer.step()
    before = dict(module.named_parameters())
    pointers = {name: each.data_ptr() for name, each in before.items()}
    versions = {name: each._version for name, each in before.items()}
    fastinit.init_model_(module, "normal", seed=0)
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    for name, each in after.items():
        assert each is before[name] and each.data_ptr() == pointers[name] and each.requires_grad, name
        assert each._version > versions[name], name
        assert "momentum_buffer" in optimizer.state[each], name
    value = module.weight.detach().clone()  # type: ignore[union-attr]
    run_forward(module).square().sum().backward()
    optimizer.step()
    run_forward(module)
    assert not torch.equal(module.weight, value)  # type: ignore[arg-type]


def test_a_backward_pass_across_the_initialisation_is_refused() -> None:
    module = parametrizations.weight_norm(linear())
    output = run_forward(module).sum()
    fastinit.init_model_(module, "normal", seed=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@each_module
def test_removing_the_parametrization_changes_no_value(make: Callable[[], nn.Module]) -> None:
    module = make()
    fastinit.init_model_(module, "normal", seed=3)
    if parametrize.is_parametrized(module):
        parametrize.remove_parametrizations(module, "weight")
    else:
        nn.utils.remove_weight_norm(module)
    now = module.weight.detach().clone()  # type: ignore[union-attr]
    fastinit.init_model_(module, "normal", seed=3)
    assert close(now, module.weight)  # type: ignore[arg-type]


@each_module
@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")  # of the bias
def test_frozen_originals_are_written_by_a_rule_and_stay_frozen(make: Callable[[], nn.Module]) -> None:
    module = make().requires_grad_(False)
    before = module.weight.detach().clone()  # type: ignore[union-attr]
    fastinit.init_model_(module, "normal", seed=3)
    assert close(module.weight, before)  # type: ignore[arg-type]
    fastinit.init_model_(module, "normal", [("weight", "normal")], seed=3)
    assert close(module.weight, plain(module, "normal"))  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in module.parameters())


@each_module
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")
def test_rules_see_whether_the_weight_is_trained(make: Callable[[], nn.Module], frozen: bool) -> None:
    module = make().requires_grad_(not frozen)
    rules = [Rule(Where(name="weight", requires_grad=False), KEEP)]
    if not frozen:
        rules.append(Rule(Where(name="weight", requires_grad=True), Constant(2.0)))
    before = module.weight.detach().clone()  # type: ignore[union-attr]
    fastinit.init_model_(module, "normal", rules=rules[-1:], seed=0)
    assert close(module.weight, before if frozen else torch.full_like(before, 2.0))  # type: ignore[arg-type]


@each_module
@pytest.mark.parametrize("select", ["weight", Where(type=(nn.Linear, "Embedding", "_ConvNd"))], ids=["name", "type"])
def test_keep_keeps_the_originals(make: Callable[[], nn.Module], select: str | Where) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan = fastinit.plan(module, "normal", rules=[(select, KEEP)], seed=0, strict=True)
    assert next(row for row in plan.rows if row.name == "weight").action == "keep"
    plan.run_()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if name != "bias")


def test_values_depend_on_the_place_in_the_model() -> None:
    model = nn.Sequential(parametrizations.weight_norm(linear()), nn.utils.weight_norm(linear()))
    fastinit.init_model_(model, "normal", seed=3)
    assert close(model[0].weight, plain(model[0], "normal", name="0.weight"))
    assert close(model[1].weight, plain(model[1], "normal", name="1.weight"))
    assert not close(model[0].weight, model[1].weight)


def test_weight_and_bias_of_one_module_can_both_be_parametrised() -> None:
    module = parametrised(linear(), Doubled())
    parametrised(module, Shifted(), name="bias")
    fastinit.init_model_(module, "normal", rules=[("bias", Constant(0.5))], seed=3, strict=True)
    assert close(module.weight, plain(module, "normal"))  # type: ignore[arg-type]
    assert (module.bias == 0.5).all()  # type: ignore[union-attr]
    fastinit.init_model_(module, "normal", seed=3, strict=True)
    assert (module.bias == 0.0).all()  # type: ignore[union-attr]


def test_a_parametrised_module_that_is_shared_is_written_once() -> None:
    shared = parametrizations.weight_norm(linear())
    model = nn.ModuleDict({"a": shared, "b": shared})
    plan = fastinit.plan(model, "normal", seed=3)
    assert [row.name for row in plan.rows if row.action == "init"] == ["a.weight", "a.bias"]
    plan.run_()
    assert close(shared.weight, plain(shared, "normal", name="a.weight"))  # type: ignore[arg-type]


def test_originals_that_two_weights_share_are_written_once() -> None:
    a, b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    b.weight = a.weight
    parametrised(a, Doubled())
    parametrised(b, Doubled())
    b.parametrizations.weight.original = a.parametrizations.weight.original  # type: ignore[union-attr]
    model = nn.ModuleDict({"a": a, "b": b})
    plan = fastinit.plan(model, "normal", seed=3)
    assert [row.name for row in plan.rows if row.action == "init"] == ["a.weight"]
    plan.run_()
    assert close(a.weight, plain(a, "normal", name="a.weight"))


def test_the_cache_of_weights_is_not_left_behind() -> None:
    module = parametrizations.weight_norm(linear())
    expected = plain(module, "normal")
    with parametrize.cached():
        fastinit.init_model_(module, "normal", seed=3)
        assert close(module.weight, expected)  # type: ignore[arg-type]
    with parametrize.cached():
        before = module.weight
        fastinit.init_model_(module, "normal", seed=4)
        assert not close(module.weight, before)  # type: ignore[arg-type]


def test_types_and_padding_are_those_of_the_parametrised_module() -> None:
    embedding = parametrised(nn.Embedding(10, 4, padding_idx=2), Doubled())
    rules = [Rule(nn.Embedding, "normal")]
    fastinit.init_model_(embedding, Constant(3.0), rules=rules, seed=3)
    expected = plain(embedding, "normal")
    expected[2] = 0.0
    assert close(embedding.weight, expected)  # type: ignore[arg-type]


def test_the_gradient_reaches_the_originals_right_after() -> None:
    for module in (nn.utils.weight_norm(linear()), parametrizations.weight_norm(linear())):
        fastinit.init_model_(module, "normal", seed=0)
        module.weight.square().sum().backward()
        assert all(each.grad is not None for name, each in module.named_parameters() if name != "bias")


# Parametrizations that cannot take every weight.


def test_spectral_norm_divides_the_schemes_weight_by_its_norm() -> None:
    torch.manual_seed(0)  # for the vectors that the iteration begins with: from a few in a hundred, it needs more steps
    module = parametrizations.spectral_norm(nn.Linear(40, 30))
    expected = plain(module, "normal")
    fastinit.init_model_(module, "normal", seed=3)
    assert torch.equal(module.parametrizations.weight.original, expected)
    for training in (False, True):
        module.train(training)
        # Fifteen steps of power iteration, as many as torch begins with, tell the norm to a few percent.
        norm = torch.linalg.matrix_norm(module.weight.detach(), 2)
        assert 1.0 - 1e-6 <= norm < 1.05


def test_spectral_norm_leaves_an_orthogonal_weight_as_it_is() -> None:
    module = parametrizations.spectral_norm(nn.Conv2d(4, 16, 2)).eval()
    fastinit.init_model_(module, "orthogonal", seed=3)
    assert torch.allclose(module.weight, plain(module, "orthogonal"), atol=1e-6)


def test_planning_leaves_the_estimates_of_spectral_norm_alone() -> None:
    module = parametrizations.spectral_norm(linear()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fastinit.plan(module, "normal", seed=3)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(each.training for each in module.modules())


ORTHOGONAL = [
    (shape, orthogonal_map, trivialised)
    for shape in ((8, 8), (6, 10), (10, 6))
    for orthogonal_map in ("householder", "cayley", "matrix_exp")
    for trivialised in (True, False)
    if trivialised or orthogonal_map == "householder"
]


@pytest.mark.parametrize(("shape", "orthogonal_map", "trivialised"), ORTHOGONAL, ids=str)
def test_orthogonal_takes_an_orthogonal_weight(shape: tuple[int, int], orthogonal_map: str, trivialised: bool) -> None:
    def build() -> nn.Module:
        module = nn.Linear(shape[1], shape[0])
        return parametrizations.orthogonal(module, orthogonal_map=orthogonal_map, use_trivialization=trivialised)

    module = build()
    for seed in (3, 4):
        expected = plain(module, "orthogonal", seed=seed)
        state = torch.get_rng_state()
        fastinit.init_model_(module, "orthogonal", seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.allclose(module.weight, expected, atol=5e-6)
    again = fastinit.init_model_(build(), "orthogonal", seed=4)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in again.state_dict().items())


def test_orthogonal_makes_another_weight_orthogonal() -> None:
    module = parametrizations.orthogonal(nn.Linear(6, 6))
    fastinit.init_model_(module, "normal", seed=3)
    assert torch.allclose(module.weight @ module.weight.mT, torch.eye(6), atol=1e-5)


# An original that is written before the failing weight, and one after it.
def model_with(broken: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "plain": nn.Linear(5, 5),
            "norm": parametrizations.weight_norm(nn.Linear(5, 5)),
            "basis": parametrizations.orthogonal(nn.Linear(5, 5)),
            "spectral": parametrizations.spectral_norm(nn.Linear(5, 5)),
            "older": nn.utils.weight_norm(nn.Linear(5, 5)),
            "broken": broken,
            "last": nn.Linear(5, 5),
        }
    )


def wrong_shape() -> nn.Module:
    module = parametrised(nn.Linear(5, 4), WrongShape())
    module.parametrizations.weight[0].__dict__["broken"] = True  # type: ignore[index,union-attr]
    return module


def untrivialised(orthogonal_map: str) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map=orthogonal_map, use_trivialization=False)


@pytest.mark.parametrize(
    ("make", "scheme", "message"),
    [
        (lambda: untrivialised("cayley"), "normal", "not possible to assign"),
        (lambda: untrivialised("matrix_exp"), "normal", "not possible to assign"),
        (wrong_shape, "normal", r"right_inverse gives shapes \[\(5, 4\)\], expected \[\(4, 5\)\]"),
        (lambda: parametrised(nn.Linear(5, 5), Exponential()), "normal", "comes out as NaN"),
        (lambda: parametrizations.weight_norm(nn.Linear(5, 5)), "zeros", "comes out as NaN"),
        (lambda: parametrizations.spectral_norm(nn.Linear(5, 5)), "zeros", "comes out as NaN"),
        (lambda: nn.utils.weight_norm(nn.Linear(5, 5)), "zeros", "comes out as NaN"),
    ],
    ids=["cayley", "matrix_exp", "shape", "log", "weight_norm", "spectral_norm", "older weight_norm"],
)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_what_cannot_be_set_is_refused_before_anything_is_written(
    make: Callable[[], nn.Module], scheme: str, message: str, backend: str
) -> None:
    with torch.no_grad():
        broken = make()
    if any(isinstance(each, Exponential) for each in broken.modules()):
        fastinit.init_model_(broken, Uniform(0.5, 2.0))
    model = model_with(broken)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^broken\.weight: cannot be set through its parametrization: .*{message}"):
        fastinit.init_model_(model, "normal", rules=[("broken.weight", scheme)], seed=0, backend=backend)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_what_can_be_represented_is_set() -> None:
    module = parametrised(linear(), Exponential())
    scheme = Uniform(0.5, 2.0)
    with torch.no_grad():
        fastinit.init_model_(module, scheme, seed=3)
    assert close(module.weight, plain(module, scheme))  # type: ignore[arg-type]


def test_without_right_inverse_the_original_is_a_parameter_like_others() -> None:
    module = parametrised(nn.Linear(6, 6), Symmetric())
    plan = fastinit.plan(module, "xavier_normal", seed=3, strict=True)
    rows = {row.name: row for row in plan.rows}
    assert rows["weight"].action == "init" and set(rows) == {"weight", "bias"}
    expected = plain(module, "xavier_normal")
    plan.run_()
    original = module.parametrizations.weight.original  # type: ignore[union-attr]
    assert torch.equal(original, expected)  # type: ignore[arg-type]
    assert torch.equal(module.weight, Symmetric()(expected))  # type: ignore[arg-type]


def test_several_originals_without_right_inverse_have_numbers_for_names() -> None:
    class FromFactors(Product):
        def right_inverse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x[:, :2].clone(), x[:2].clone()

    module = parametrised(nn.Linear(6, 6), FromFactors())
    module.parametrizations.weight[0] = Product()  # type: ignore[index,union-attr,operator]
    plan = fastinit.plan(module, "normal", seed=3, strict=True)
    assert [row.name for row in plan.rows if row.action == "init"] == ["bias", "weight.0", "weight.1"]
    plan.run_()
    expected = torch.empty(6, 2)
    fastinit.init_([expected], "normal", names=["weight.0"], seed=3)
    assert torch.equal(module.parametrizations.weight.original0, expected)  # type: ignore[union-attr]


def test_parameters_of_the_parametrization_itself_are_rows_of_their_own() -> None:
    class Stretched(Doubled):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3))

    with pytest.warns(fastinit.UncoveredWarning):
        plan = fastinit.plan(parametrised(linear(), Stretched()), "normal")
    assert plan.uncovered == ("parametrizations.weight.0.scale",)


def test_parametrised_layers_need_no_fans_of_their_own() -> None:
    module = parametrizations.weight_norm(nn.Conv2d(8, 12, 3, groups=4))
    by_module = {row.name: row.fans for row in fastinit.plan(module, "kaiming_normal", fan="module").rows}
    ordinary = fastinit.plan(nn.Conv2d(8, 12, 3, groups=4), "kaiming_normal", fan="module").rows
    assert by_module["weight"] == next(row.fans for row in ordinary if row.name == "weight") is not None


@pytest.mark.parametrize("make", [MODULES["weight_norm"], MODULES["older weight_norm"], MODULES["one's own"]])
@pytest.mark.parametrize("fan", ["weight", "module"])
def test_a_bias_beside_a_parametrised_weight_has_its_fans(make: Callable[[], nn.Module], fan: str) -> None:
    module = make()
    rules = [Rule("bias", "lecun_uniform", fan=fan)]  # type: ignore[arg-type]
    row = next(row for row in fastinit.plan(module, "normal", rules=rules).rows if row.name == "bias")
    assert row.fans is not None and row.fans.fan_in == 12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    module = parametrised(linear().to(dtype), Doubled())
    fastinit.init_model_(module, "normal", seed=3)
    assert module.weight.dtype is dtype and torch.equal(module.weight, plain(module, "normal"))  # type: ignore[arg-type]


def test_a_copy_of_an_initialised_model_has_its_values() -> None:
    module = parametrizations.orthogonal(nn.Linear(6, 6))
    fastinit.init_model_(module, "orthogonal", seed=3)
    assert torch.equal(copy.deepcopy(module).weight, module.weight)


def test_manual_seed_governs_parametrised_weights_too() -> None:
    module = parametrizations.weight_norm(linear())
    outcomes = []
    for _ in range(2):
        torch.manual_seed(5)
        fastinit.init_model_(module, "normal")
        outcomes.append(module.weight.detach().clone())
    fastinit.init_model_(module, "normal")
    assert torch.equal(*outcomes) and not torch.equal(outcomes[0], module.weight)


@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_adapter_of_peft_starts_at_zero() -> None:
    peft = library_of_models("peft")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 24)
            self.first = nn.Linear(24, 36)
            self.second = nn.Linear(36, 24)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            outcome: torch.Tensor = self.second(self.first(self.embed(tokens)))
            return outcome

    config = peft.LoraConfig(r=6, target_modules=["first", "second", "embed"])
    model = peft.get_peft_model(Net(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    fastinit.init_model_(model, "xavier_uniform", seed=0, strict=True)
    there = dict(model.named_parameters())
    for layer, inputs in (("first", 24), ("second", 36)):
        a = there[f"base_model.model.{layer}.lora_A.default.weight"]
        assert 0.9 / math.sqrt(inputs) < a.abs().max() <= 1.0 / math.sqrt(inputs)
        assert (there[f"base_model.model.{layer}.lora_B.default.weight"] == 0.0).all()
    assert (there["base_model.model.embed.lora_embedding_A.default"] == 0.0).all()
    assert abs(float(there["base_model.model.embed.lora_embedding_B.default"].detach().std()) - 1.0) < 5.0 / math.sqrt(
        2 * 144
    )
    tokens = torch.arange(10)
    adapted = model(tokens)
    with model.disable_adapter():
        assert torch.equal(model(tokens), adapted)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == frozen


@pytest.mark.parametrize("make", [linear, lambda: nn.Conv2d(3, 8, 3)], ids=["linear", "convolution"])
def test_the_older_spectral_norm_divides_the_scheme_by_its_norm(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)  # as above
    module = nn.utils.spectral_norm(make())
    original = module.weight_orig
    plan = fastinit.plan(module, "normal", seed=3, strict=True)
    assert [(row.name, row.action) for row in plan.rows][:2] == [("weight", "init"), ("bias", "init")]
    for _ in range(2):  # running again does not compound
        plan.run_()
        plain = torch.empty(original.shape)
        fastinit.init_([plain], "normal", names=["weight"], seed=3)
        assert torch.equal(original, plain) and module.weight_orig is original
        norm = torch.linalg.matrix_norm(plain.flatten(1), ord=2)
        # Fifteen power iterations, as in torch, leave a few per cent.
        torch.testing.assert_close(module.weight.detach(), plain / norm, rtol=0.05, atol=0)
        module.eval()
        module(torch.zeros(1, plain.shape[1], *(5,) * (plain.dim() - 2)))
        torch.testing.assert_close(module.weight.detach(), plain / norm, rtol=0.05, atol=0)


def test_zeros_under_the_older_spectral_norm_are_refused() -> None:
    module = nn.utils.spectral_norm(linear())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight: .*NaN"):
        fastinit.init_model_(module, "zeros")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
