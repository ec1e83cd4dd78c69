"""What a parameter is: the table of roles, what each role gets, and that the author's code comes before a scheme."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit import Where
from fastinit.rules.roles import Roles
from fastinit.schemes import distributions
from fastinit.schemes.named import Normal

SCHEME = Normal(std=0.5)


def role_of(model: nn.Module, name: str) -> str:
    path, _, own_name = name.rpartition(".")
    module = model.get_submodule(path)
    parameter = module._parameters[own_name]
    assert parameter is not None
    return Roles(model, SCHEME).role(name, module, own_name, parameter)


def reasons(model: nn.Module) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {row.name: row.reason for row in fastinit.plan(model, SCHEME, seed=0).rows}


# ---- torch.nn ----

# Arguments for the constructors of torch.nn's classes that hold parameters themselves, and the role of each parameter.
OF_TORCH: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, str]]] = {
    "Linear": ((4, 3), {}, {"weight": "map", "bias": "bias"}),
    "Bilinear": ((4, 3, 2), {}, {"weight": "map", "bias": "bias"}),
    **{f"Conv{n}d": ((4, 6, 3), {}, {"weight": "map", "bias": "bias"}) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": ((4, 6, 3), {}, {"weight": "map", "bias": "bias"}) for n in (1, 2, 3)},
    "Embedding": ((5, 3), {}, {"weight": "table"}),
    "EmbeddingBag": ((5, 3), {}, {"weight": "table"}),
    **{f"BatchNorm{n}d": ((4,), {}, {"weight": "scale", "bias": "bias"}) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": ((4,), {"affine": True}, {"weight": "scale", "bias": "bias"}) for n in (1, 2, 3)},
    "SyncBatchNorm": ((4,), {}, {"weight": "scale", "bias": "bias"}),
    "GroupNorm": ((2, 4), {}, {"weight": "scale", "bias": "bias"}),
    "LayerNorm": (((3, 4),), {}, {"weight": "scale", "bias": "bias"}),
    "RMSNorm": ((4,), {}, {"weight": "scale"}),
    "PReLU": ((4,), {}, {"weight": "published"}),
    "LSTM": ((4, 3), {"proj_size": 2}, {
        "weight_ih_l0": "map", "weight_hh_l0": "map", "weight_hr_l0": "map", "bias_ih_l0": "bias",
        "bias_hh_l0": "bias"}),
    "GRU": ((4, 3), {"bidirectional": True}, {
        f"{each}_l0{way}": "map" if "weight" in each else "bias"
        for each in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for way in ("", "_reverse")}),
    "RNN": ((4, 3), {}, {"weight_ih_l0": "map", "weight_hh_l0": "map", "bias_ih_l0": "bias", "bias_hh_l0": "bias"}),
    **{kind: ((4, 3), {}, {"weight_ih": "map", "weight_hh": "map", "bias_ih": "bias", "bias_hh": "bias"})
       for kind in ("RNNCell", "LSTMCell", "GRUCell")},
    "MultiheadAttention": ((4, 2), {"kdim": 3, "vdim": 3, "add_bias_kv": True}, {
        "q_proj_weight": "map", "k_proj_weight": "map", "v_proj_weight": "map", "in_proj_bias": "bias",
        "bias_k": "author", "bias_v": "author"}),
}  # fmt: skip

# They hold no parameters themselves, cannot be made without other modules, or get their shape later.
OTHERS = {
    "Module",
    "Sequential",
    "ModuleList",
    "ModuleDict",
    "ParameterList",
    "ParameterDict",
    "Container",
    "DataParallel",
    "Transformer",
    "TransformerEncoder",
    "TransformerDecoder",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "AdaptiveLogSoftmaxWithLoss",
    "RNNBase",
    "RNNCellBase",
    "FractionalMaxPool2d",
    "Unflatten",
    "FractionalMaxPool3d",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of classes that torch deprecates
def test_every_class_of_torch_nn_with_parameters_is_listed() -> None:
    for name, kind in inspect.getmembers(nn, inspect.isclass):
        if not issubclass(kind, nn.Module) or name in OF_TORCH or name in OTHERS or name.startswith("Lazy"):
            continue
        required = [
            each for each in inspect.signature(kind.__init__).parameters.values()
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        ][1:]  # fmt: skip
        module = kind(*(2 for _ in required))
        assert not module._parameters, f"torch.nn.{name} has parameters: what are their roles?"


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_roles_of_torch_nn(name: str) -> None:
    arguments, options, wanted = OF_TORCH[name]
    kind = getattr(nn, name)
    for each in (kind, type(f"Own{name}", (kind,), {})):
        model = nn.ModuleDict({"x": each(*arguments, **options)})
        own_names = [own_name for own_name, parameter in model["x"]._parameters.items() if parameter is not None]
        assert {own_name: role_of(model, f"x.{own_name}") for own_name in own_names} == wanted


@pytest.mark.parametrize("name", OF_TORCH)
def test_a_model_of_any_class_of_torch_nn_is_covered(name: str) -> None:
    arguments, options, _ = OF_TORCH[name]
    model = getattr(nn, name)(*arguments, **options)
    fastinit.init_model_(model, SCHEME, seed=0, strict=True, fan="torch")
    lazy = getattr(nn, f"Lazy{name}", None)
    assert lazy is None or lazy.cls_to_become is getattr(nn, name)


@needs_native
def test_the_keys_of_attention_are_drawn_as_torch_draws_them() -> None:
    model = nn.MultiheadAttention(64, 2, add_bias_kv=True)
    before = model.bias_k.detach().clone()
    fastinit.init_model_(model, SCHEME, seed=0)
    assert not torch.equal(model.bias_k, before)
    assert model.bias_k.std().item() == pytest.approx(before.std().item(), rel=0.5)


# ---- modules that nobody knows ----


def holding(class_name: str = "Unknown", **parameters: torch.Tensor) -> nn.Module:
    module: nn.Module = type(class_name, (nn.Module,), {})()
    for name, value in parameters.items():
        module.register_parameter(name, nn.Parameter(value))
    return module


@pytest.mark.parametrize(
    ("shape", "name", "role"),
    [
        ((4, 6), "w", "map"),
        ((8, 4, 6), "gate_up_proj", "map"),
        ((4,), "w", "author"),
        ((), "resid_lambda", "author"),
        ((4, 1, 1), "layer_scale", "author"),
        ((1, 4, 1, 1), "gain", "author"),
        ((1, 1, 4), "x_r", "author"),
        ((1, 5, 4), "queries", "author"),
        ((5, 4), "pos_embed", "author"),
        ((5, 4), "relative_position_bias_table", "author"),
        ((2, 4), "cls_token", "author"),
        ((5, 4), "token_mixing", "map"),
        ((5, 4), "deposit", "map"),
    ],
)
def test_maps_of_unknown_modules_have_two_long_axes(shape: tuple[int, ...], name: str, role: str) -> None:
    assert role_of(holding(**{name: torch.zeros(shape)}), name) == role


@pytest.mark.parametrize(
    ("parameters", "name", "role"),
    [
        ({"weight": (4, 6), "q_bias": (4,)}, "q_bias", "bias"),
        ({"q_bias": (4,)}, "q_bias", "author"),
        ({"weight": (4, 6), "logit_bias": ()}, "logit_bias", "author"),
        ({"bias": (4,)}, "bias", "bias"),
        ({"gamma": (4,), "beta": (4,)}, "beta", "bias"),
        ({"beta": (1,)}, "beta", "author"),  # the slope of Swish
        ({"weight": (4, 6), "bias_table": (9, 6)}, "bias_table", "author"),
        ({"gate_up_proj": (8, 4, 6), "gate_up_proj_bias": (8, 6)}, "gate_up_proj_bias", "bias"),
        ({"gate_up_proj": (8, 4, 6), "bias": (6, 4)}, "bias", "author"),
        ({"A_log": (4,), "dt_bias": (4,), "w": (4, 6)}, "dt_bias", "author"),
        ({"A_log": (4, 6), "dt_bias": (4,)}, "dt_bias", "published"),
        ({"A_log": (4,), "D": (4,)}, "D", "published"),
        ({"D": (4, 6)}, "D", "map"),
    ],
)
def test_a_name_decides_only_together_with_what_is_around_it(
    parameters: dict[str, tuple[int, ...]], name: str, role: str
) -> None:
    assert role_of(holding(**{each: torch.zeros(shape) for each, shape in parameters.items()}), name) == role


def test_scales_are_those_of_normalisations() -> None:
    for name in ("weight", "gamma", "scale", "g", "a_2"):
        assert role_of(holding("FancyNorm", **{name: torch.zeros(4)}), name) == "scale"
        assert role_of(holding("Fancy", **{name: torch.zeros(4)}), name) == "author"
    assert role_of(holding("FancyNorm", weight=torch.zeros(4, 6)), "weight") == "author"
    assert role_of(holding("FancyNorm", temperature=torch.zeros(4)), "temperature") == "author"


def test_the_reason_tells_the_kind() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 3),
            "embed": nn.Embedding(5, 4, padding_idx=2),
            "experts": holding("Experts", gate_up_proj=torch.zeros(8, 4, 6)),
            "norm": nn.LayerNorm(4),
            "frozen": nn.Linear(4, 3, bias=False).requires_grad_(False),
            "scalar": holding("Mixer", alpha=torch.ones(())),
        }
    )
    assert reasons(model) == {
        "linear.weight": "linear map of Linear",
        "linear.bias": "bias",
        "embed.weight": "table of Embedding, padding row 2 zero",
        "experts.gate_up_proj": "stack of 8 maps",
        "norm.weight": "norm scale",
        "norm.bias": "norm shift",
        "frozen.weight": "frozen: kept",
        "scalar.alpha": "alpha of Mixer: its author's, and no code tells",
    }


# ---- the author's code ----


class Author(nn.Module):
    """Its reset code tells of everything below it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.empty(4))
        self.table = nn.Parameter(torch.empty(6, 4))
        self.token = nn.Parameter(torch.empty(1, 1, 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.eye_(self.second.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, -4.0)
        nn.init.zeros_(self.norm.weight)
        nn.init.constant_(self.scale, 0.1)
        nn.init.normal_(self.token, std=0.02)
        with torch.no_grad():
            self.table.copy_(torch.arange(24.0).reshape(6, 4))


SET = {
    "second.weight": torch.eye(4),
    "last.weight": torch.zeros(4, 4),
    "last.bias": torch.full((4,), -4.0),
    "norm.weight": torch.zeros(4),
    "scale": torch.full((4,), 0.1),
    "table": torch.arange(24.0).reshape(6, 4),
}


@pytest.mark.parametrize("state", ["fresh", "trained", "meta"])
def test_a_scheme_replaces_draws_and_what_the_author_set_stays_set(state: str) -> None:
    if state == "meta":
        with torch.device("meta"):
            model = Author()
        fastinit.materialize_(model, SCHEME, device="cpu", seed=0, strict=True)
    else:
        model = Author()
        if state == "trained":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7.0)
        fastinit.init_model_(model, SCHEME, seed=0, strict=True)
    for name, wanted in SET.items():
        assert torch.equal(model.get_parameter(name).detach(), wanted), name
    assert (model.first.bias == 0).all() and (model.second.bias == 0).all()
    fresh = torch.empty(4, 4)
    fastinit.init_([fresh], SCHEME, names=["first.weight"], seed=0)
    assert torch.equal(model.first.weight, fresh)
    assert 0 < model.token.abs().max() < 0.2


def test_a_rule_comes_before_the_author() -> None:
    model = fastinit.init_model_(Author(), SCHEME, [("last.*", "ones"), (Where(role="scale"), "ones")], seed=0)
    assert (model.last.weight == 1).all() and (model.last.bias == 1).all() and (model.norm.weight == 1).all()


def test_values_decide_nothing_and_zeros_are_said() -> None:
    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            nn.init.zeros_(self.last.weight)

    model = Zeros()
    plan = fastinit.plan(model, SCHEME, seed=0)  # planning reads no values
    with pytest.warns(fastinit.ZerosWarning, match=r"all zero, and are drawn now: last\.weight;") as caught:
        plan.run_()
    assert len(caught) == 1 and model.last.weight.std() > 0
    plan.run_()
    fastinit.init_model_(Zeros(), SCHEME, [("last.weight", "zeros")], seed=0)
    unwritten = Zeros().to("meta").to_empty(device="cpu")
    for parameter in unwritten.parameters():
        parameter.untyped_storage().copy_(torch.zeros_like(parameter).untyped_storage())  # new memory may be zero
    fastinit.init_model_(unwritten, SCHEME, seed=0)


@pytest.mark.parametrize("name", ["init_weights", "reset_parameters"])
def test_code_that_calls_fastinit_itself_is_not_asked(name: str) -> None:
    def of_itself(model: nn.Module) -> None:
        fastinit.init_model_(model, SCHEME, seed=0)

    def on_a_device(model: nn.Module) -> None:
        fastinit.materialize_(model, SCHEME, device="cpu", seed=0)

    for code in (of_itself, on_a_device, fastinit.adapters.init_weights(SCHEME, seed=0)):
        model = type("Model", (nn.Sequential,), {name: code})(nn.Linear(3, 3), nn.LayerNorm(3))
        getattr(model, name)()
        plan = fastinit.plan(model, SCHEME, seed=0, strict=True)
        assert [row.reason for row in plan.rows] == ["linear map of Linear", "bias", "norm scale", "norm shift"]


# ---- frozen parameters ----


def test_a_frozen_parameter_on_meta_has_no_values_to_keep() -> None:
    with torch.device("meta"):
        model = Author().requires_grad_(False)
    fastinit.materialize_(model, SCHEME, device="cpu", seed=0, strict=True)
    for name, wanted in SET.items():
        assert torch.equal(model.get_parameter(name).detach(), wanted), name
    assert 0 < model.first.weight.abs().max() <= (6 / 8) ** 0.5  # as the author draws it
    assert not any(each.requires_grad for each in model.parameters())


def test_frozen_parameters_are_kept_under_own_and_presets() -> None:
    schemes: list[Any] = ["own", fastinit.Recipe(SCHEME, [])]
    for scheme in schemes:
        model = Author()
        model.first.weight.requires_grad_(False).fill_(7.0)
        with pytest.warns(fastinit.KeptWarning, match=r"first\.weight"):
            fastinit.init_model_(model, scheme, seed=0)
        assert (model.first.weight == 7.0).all()


# ---- published values ----


class DoraLayer(nn.Module):
    def __init__(self, base: nn.Module, magnitude: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_magnitude_vector = nn.ModuleDict({"default": holding(weight=magnitude)})


@pytest.mark.parametrize("scheme", [SCHEME, "orthogonal", "own"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_magnitudes_of_dora_follow_the_map_that_was_just_written(scheme: Any, backend: str, where: str) -> None:
    with torch.device(where):
        model = nn.ModuleDict(
            {
                "linear": DoraLayer(nn.Linear(16, 8), torch.full((8,), 7.0)),
                "conv": DoraLayer(nn.Conv2d(4, 6, 3), torch.full((1, 6, 1, 1), 7.0)),
            }
        )
    if where == "meta":
        fastinit.materialize_(model, scheme, device="cpu", seed=0, backend=backend)
    else:
        fastinit.init_model_(model, scheme, seed=0, backend=backend)
    for each in model.values():
        weight = each.base_layer.weight.detach()
        magnitude = each.lora_magnitude_vector["default"].weight.detach()
        assert torch.allclose(magnitude.flatten(), weight.flatten(1).norm(dim=1), rtol=1e-5) and weight.std() > 0


def test_magnitudes_of_a_frozen_map_are_its_own() -> None:
    model = DoraLayer(nn.Linear(16, 8).requires_grad_(False), torch.full((8,), 7.0))
    before = model.base_layer.weight.clone()
    with pytest.warns(fastinit.KeptWarning):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert torch.equal(model.base_layer.weight, before)
    assert torch.allclose(model.lora_magnitude_vector["default"].weight, before.norm(dim=1), rtol=1e-5)


def test_factors_of_ia3_and_response_norms_are_the_identity() -> None:
    ia3 = nn.Module()
    ia3.base_layer, ia3.ia3_l = nn.Linear(4, 4), nn.ParameterDict({"default": nn.Parameter(torch.full((4, 1), 7.0))})
    fastinit.init_model_(ia3, SCHEME, seed=0, strict=True)
    assert (ia3.ia3_l["default"] == 1).all()
    grn = holding("GRN", gamma=torch.full((1, 1, 1, 4), 7.0), beta=torch.full((1, 1, 1, 4), 7.0))
    fastinit.init_model_(grn, SCHEME, seed=0, strict=True)
    assert not any(each.any() for each in grn.parameters())


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1), (1, 6, 1, 1)])
def test_layer_scales_of_any_shape_have_their_init_values(shape: tuple[int, ...]) -> None:
    module = holding("LayerScale2d", gamma=torch.full(shape, 7.0))
    module.init_values = 1e-5
    fastinit.init_model_(module, SCHEME, seed=0, strict=True)
    assert (module.gamma == 1e-5).all()


def test_state_spaces_of_one_dimension_are_their_authors() -> None:
    module = holding("GatedDeltaNet", A_log=torch.full((8,), 7.0), dt_bias=torch.full((8,), 7.0))
    with pytest.warns(fastinit.UncoveredWarning, match="A_log, dt_bias"):
        fastinit.init_model_(module, SCHEME, seed=0)
    assert (module.A_log == 7).all() and (module.dt_bias == 7).all()


class Quiet(nn.Module):
    """A head that begins next to zero, and one that is only drawn small."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.small = nn.Linear(100, 50), nn.Linear(100, 50)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.normal_(self.small.weight, std=0.002)
        with torch.no_grad():
            self.head.weight.mul_(0.001)


def test_a_map_that_its_author_draws_next_to_zero_is_his() -> None:
    model = fastinit.init_model_(Quiet(), "kaiming_normal", seed=0)
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert model.small.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.05)
    fastinit.init_model_(model, "kaiming_normal", [("head.weight", "ones")], seed=0)
    assert (model.head.weight == 1).all()


class Steps(nn.Module):
    """Maps and biases of a state space, under names that nobody knows, and the reset code that draws all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 200)
        self.pace_proj = nn.Parameter(torch.empty(3, 8, 100))
        self.pace_proj_bias = nn.Parameter(torch.empty(3, 100))
        self.phase = nn.Linear(4, 200)
        self.plain = nn.Linear(4, 200)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)
        nn.init.uniform_(self.phase.bias, 0.0, 2 * math.pi)
        for bias in (self.step.bias, self.pace_proj_bias):
            steps = torch.exp(torch.rand(bias.shape) * math.log(100.0) + math.log(1e-3))
            with torch.no_grad():
                bias.copy_(steps + torch.log(-torch.expm1(-steps)))


@pytest.mark.parametrize("on_meta", [False, True])
def test_a_bias_whose_draw_has_a_meaning_is_its_authors(on_meta: bool) -> None:
    if on_meta:
        with torch.device("meta"):
            model = Steps()
        fastinit.materialize_(model, SCHEME, device="cpu", seed=0, strict=True)
    else:
        model = fastinit.init_model_(Steps(), SCHEME, seed=0, strict=True)
    for bias in (model.step.bias, model.pace_proj_bias):
        steps = nn.functional.softplus(bias.detach())
        assert 1e-3 < steps.min() * 1.001 < 2e-3 and 0.05 < steps.max() * 0.999 < 0.1
    assert model.phase.bias.min() >= 0 and model.phase.bias.max() > 6
    assert (model.plain.bias == 0).all()  # drawn about zero


# ---- wrappers change nothing ----


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapper_changes_no_role(wrap: Callable[[nn.Module], nn.Module]) -> None:
    def made() -> nn.Module:
        model = nn.Module()
        model.author, model.dora = Author(), DoraLayer(nn.Linear(16, 8), torch.full((8,), 7.0))
        model.mixer = holding(A_log=torch.zeros(4, 6))
        model.mixer.dt_proj = nn.Linear(4, 4)
        return model

    plain = fastinit.plan(made(), SCHEME, seed=0).rows
    wrapped = fastinit.plan(wrap(made()), SCHEME, seed=0).rows
    assert [(row.name, row.reason) for row in plain] == [(row.name, row.reason) for row in wrapped]


def test_rules_call_the_roles_as_the_table_does() -> None:
    from fastinit.rules import roles, where

    assert set(where.ROLES) == set(get_args(roles.RoleName)) == {name for name, _ in roles.ROLES} | {"author"}


def test_a_new_role_is_one_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastinit.rules import roles
    from fastinit.rules.asked import Asked, Found

    def _temperature(asked: Asked) -> Found | None:
        return Found("temperature", fastinit.Constant(0.07)) if asked.own_name == "temperature" else None

    monkeypatch.setattr(roles, "ROLES", (("published", _temperature), *roles.ROLES))
    row = fastinit.plan(holding(temperature=torch.ones(())), SCHEME, seed=0).rows[0]
    assert row.distribution == distributions.Constant(0.07) and row.reason == "temperature"


# ---- parts of weights, and norms ----


class Prototypes(nn.Module):
    """As heads of DINO have them: directions alone are trained, or begin with norms of one."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = nn.utils.weight_norm(nn.Linear(6, 9, bias=False))
        self.last.weight_g.data.fill_(1)


class NewPrototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Any = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::fastinit.KeptWarning")
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [Prototypes, NewPrototypes])
def test_norms_that_their_author_sets_stay_beside_directions(kind: Any, frozen: bool) -> None:
    model = kind()
    norms, directions = model.last.parameters()
    norms.requires_grad_(not frozen)
    before = directions.detach().clone()
    fastinit.init_model_(model, "kaiming_normal", seed=0)
    assert (norms == 1).all() and not torch.equal(directions, before)
    assert torch.allclose(model.last(torch.eye(6)).square().sum(0), torch.ones(9))


def test_a_shift_in_a_buffer_is_no_one_plus() -> None:
    class Norm(nn.Module):
        def __init__(self, size: int = 6) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(size))
            self.register_buffer("beta", torch.zeros(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta)

    model = fastinit.init_model_(type("LayerNorm", (Norm,), {})(), "kaiming_normal", seed=0)
    assert (model.gamma == 1).all()


def trained(*shape: int) -> torch.Tensor:
    return torch.full(shape, 7.0)


@pytest.mark.parametrize("name", ["beta", "null_kv", "mem_k", "pseudo_queries", "latents", "codebook_prototypes"])
def test_what_stands_beside_activations_is_no_map(name: str) -> None:
    assert role_of(holding(**{name: torch.zeros(3, 4, 6)}), name) == "author"
    assert role_of(holding(**{f"{name}_map": torch.zeros(3, 4, 6)}), f"{name}_map") == "map"


@pytest.mark.parametrize(("scale", "shift", "is_bias"), [((), (), False), ((4,), (3,), False), ((4,), (4,), True)])
def test_a_shift_is_as_long_as_the_scale_beside_it(
    scale: tuple[int, ...], shift: tuple[int, ...], is_bias: bool
) -> None:
    class Neuron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.rand(scale)), nn.Parameter(torch.rand(shift))

    with pytest.warns(fastinit.UncoveredWarning, match="gamma"):
        rows = fastinit.plan(Neuron(), SCHEME, seed=0).rows
    assert (rows[1].reason == "bias") == is_bias and (rows[1].action == "init") == is_bias
