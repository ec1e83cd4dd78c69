"""What is read in the text of constructors: constants that would be lost otherwise, and nothing that may be wrong."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastinit

SCHEME = "kaiming_normal"


def of(model: nn.Module, name: str, scheme: str = SCHEME) -> tuple[str, str]:
    """(what a plan gives a parameter, the reason)."""
    row = next(each for each in fastinit.plan(model, scheme, seed=0).rows if each.name == name)
    return str(row.distribution), row.reason


class Head(nn.Module):
    def __init__(self, width: int = 4, prior: float = 0.01, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.prior = prior
        self.logits = nn.Linear(width, 3)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))
        self.gates = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))
        if self.gated:
            self.gates[0].bias.data.fill_(np.log(math.e))
        if self.gates[2].bias is not None:
            nn.init.ones_(self.logits.bias)
        with torch.no_grad():
            self.norm = nn.LayerNorm(width)
            self.norm.weight.fill_(0.5)


def test_constants_of_a_constructor_stay_under_any_scheme() -> None:
    model = nn.Sequential(Head(), Head(prior=0.5, gated=False))
    assert of(model, "0.logits.bias") == ("-4.59512", "author: -4.59512")
    assert of(model, "1.logits.bias")[1] == "author: zeros"
    assert of(model, "0.gates.0.bias")[1] == "author: ones" and of(model, "1.gates.0.bias")[1] == "bias"
    assert of(model, "0.logits.weight")[1] == "linear map of Linear"
    assert of(model, "0.logits.bias", "own")[1] == "own: as its constructor is written"
    fresh = {name: each.clone() for name, each in model.named_parameters() if name.endswith(".bias")}
    fastinit.init_model_(model, SCHEME, seed=0)
    for name in ("0.logits.bias", "1.logits.bias", "0.gates.0.bias"):
        torch.testing.assert_close(model.get_parameter(name), fresh[name])
    meta = nn.Sequential(Head().to("meta"))
    fastinit.materialize_(meta, SCHEME, device="cpu", seed=0)
    assert torch.allclose(meta.get_parameter("0.logits.bias"), torch.tensor(-math.log(99)))


def test_a_constant_that_was_computed_from_what_is_gone_is_kept() -> None:
    class Gone(nn.Module):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)
            self.map.bias.data.fill_(bias)

    model = Gone(-3.0)
    with pytest.warns(fastinit.UncoveredWarning, match=r"map\.bias"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert (model.map.bias == -3.0).all()
    with pytest.raises(ValueError, match=r"map\.bias"):
        fastinit.init_model_(model, SCHEME, seed=0, strict=True)


@pytest.mark.parametrize("way", ["assigned", "filled", "by torch.nn.init", "drawn"])
def test_patterns_in_a_bias_are_kept(way: str) -> None:
    class Forgetful(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.way = way
            self.lstm = nn.LSTM(3, 4)
            if self.way == "assigned":
                self.lstm.bias_hh_l0.data[4:8] = 1.0
            if self.way == "filled":
                self.lstm.bias_hh_l0.data[4:8].fill_(1.0)
            if self.way == "by torch.nn.init":
                nn.init.ones_(self.lstm.bias_hh_l0[4:8])
            if self.way == "drawn":
                self.lstm.bias_hh_l0.data[4:8] = torch.rand(4)

    model = Forgetful(way)
    before = model.lstm.bias_hh_l0.detach().clone()
    if way == "drawn":
        assert of(model, "lstm.bias_hh_l0")[1] == "bias"
        return
    with pytest.warns(fastinit.UncoveredWarning, match=r"lstm\.bias_hh_l0"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert torch.equal(model.lstm.bias_hh_l0, before) and (model.lstm.bias_ih_l0 == 0.0).all()


SET = "bias: set by its constructor, and no code tells to what"


class Set(nn.Module):
    """Sets a constant. Those derived from it may set it again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        nn.init.constant_(self.inner[-1].bias, val=2.0)


class SetAgain(Set):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(tensor=self.inner[1].bias, val=5)


class InLoop(Set):
    def __init__(self) -> None:
        super().__init__()
        for each in self.modules():
            if isinstance(each, nn.Linear):
                nn.init.zeros_(each.bias)


class Filtered(Set):
    def __init__(self) -> None:
        super().__init__()
        for each in filter(lambda module: isinstance(module, nn.Linear), self.modules()):
            nn.init.zeros_(each.bias)


class Applied(Set):
    def __init__(self) -> None:
        super().__init__()
        self.apply(self.set)

    def set(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class Replaced(Set):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])


class Drawn(Set):
    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.inner[1].bias)


class Either(Set):
    def __init__(self, other: bool = False) -> None:
        super().__init__()
        if other:
            nn.init.zeros_(self.inner[1].bias)


class Early(Set):
    def __init__(self, early: bool = True) -> None:
        super().__init__()
        if early:
            return
        nn.init.constant_(self.inner[1].bias, 6.0)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.set = Set()
        nn.init.constant_(self.set.inner[1].bias, 9.0)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Set, "inner.1.bias", "author: 2"),
        (Set, "inner.0.bias", "bias"),
        (SetAgain, "inner.1.bias", "author: 5"),
        (InLoop, "inner.1.bias", "author: zeros"),
        (InLoop, "inner.0.bias", "author: zeros"),
        (Filtered, "inner.1.bias", SET),
        (Filtered, "inner.0.bias", "bias"),
        (Applied, "inner.1.bias", "author: zeros"),
        (Replaced, "inner.1.bias", "bias"),
        (Drawn, "inner.1.bias", "bias"),
        (Either, "inner.1.bias", SET),
        (Early, "inner.1.bias", SET),
        (Around, "set.inner.1.bias", "author: 9"),
    ],
)
def test_the_last_statement_decides_and_what_is_not_understood_makes_unknown(
    kind: Any, name: str, expected: str
) -> None:
    assert of_quietly(kind(), name) == expected
    assert of_quietly(nn.Sequential(kind()), f"0.{name}") == expected


def test_what_a_model_does_to_its_parts_counts_more_than_what_they_say() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Set()
            self.apply(lambda module: None)

    class WithCode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Set()

        def init_weights(self) -> None:
            nn.init.constant_(self.part.inner[1].bias, 3.0)

    assert of(Model(), "part.inner.1.bias")[1] == "author: 2"
    assert of(WithCode(), "part.inner.1.bias")[1] == "author: 3"


def test_a_constructor_without_a_text_may_do_anything_to_its_parts() -> None:
    namespace: dict[str, Any] = {"__name__": "untold", "nn": nn, "Set": Set}
    exec("class Untold(nn.Module):\n  def __init__(self):\n    super().__init__(); self.part = Set()", namespace)
    assert of_quietly(namespace["Untold"](), "part.inner.1.bias") == SET


# ---- code that a constructor calls, and names that it gives ----


class Detector(nn.Module):
    """Its biases follow from strides, as those of detectors that predict on a grid do."""

    stride = torch.zeros(2)

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.boxes = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 4, 1)) for _ in range(2))
        self.scores = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, classes, 1)) for _ in range(2))

    def bias_init(self) -> None:
        for boxes, scores, stride in zip(self.boxes, self.scores, self.stride, strict=True):
            boxes[-1].bias.data[:] = 1.0
            scores[-1].bias.data[: self.classes] = math.log(5 / self.classes / (640 / stride) ** 2)


def init_settings(model: nn.Module) -> None:
    settings: dict[str, float] = {}
    settings["eps"] = 1e-3
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = settings["eps"]


class Grid(nn.Module):
    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), Detector())
        head = self.model[-1]
        if isinstance(head, Detector):

            def strides() -> torch.Tensor:
                return torch.tensor([8.0, 16.0])

            head.stride = strides()
            head.bias_init()
        nn.init.constant_(self.model[0].bias, 0.25)
        init_settings(self)


def test_code_that_a_constructor_calls_for_a_part_is_run_again() -> None:
    model = Grid()
    wanted = {name: each.detach().clone() for name, each in model.named_parameters() if ".1.bias" in name}
    assert of(model, "model.2.boxes.0.1.bias")[1] == "author: ones"
    assert of(model, "model.2.scores.1.1.bias", "own")[1] == "own: its reset code"
    assert of(model, "model.0.bias")[1] == "author: 0.25" and of(model, "model.2.scores.1.0.bias")[1] == "bias"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # values decide nothing
    fastinit.init_model_(model, SCHEME, seed=0)
    for name, value in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value)
    assert (model.model[2].stride == torch.tensor([8.0, 16.0])).all()


class Own(nn.Module):
    """A method with a name of its own, and a function: both know more than a reader of their text."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.slopes = nn.Linear(2, heads)
        self.gate = nn.Linear(2, heads)
        nn.init.constant_(self.gate.bias, 3.0)
        self.init_slopes()
        init_gate(self.gate)
        nn.init.constant_(self.slopes.weight, 0.25)

    def init_slopes(self) -> None:
        with torch.no_grad():
            self.slopes.bias.copy_(2.0 ** -torch.arange(1.0, 1 + self.slopes.out_features))
            self.slopes.weight.normal_()


def init_gate(gate: nn.Linear) -> None:
    for parameter in gate.parameters():
        nn.init.constant_(parameter, -2.0 / gate.in_features)


def test_code_that_a_constructor_calls_runs_in_its_place() -> None:
    model: Any = nn.Sequential(Own(), nn.Linear(4, 4))
    fresh = {name: each.detach().clone() for name, each in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.normal_()
    fastinit.init_model_(model, SCHEME, seed=0)
    for name in ("0.slopes.bias", "0.slopes.weight", "0.gate.bias", "0.gate.weight"):
        assert torch.equal(model.get_parameter(name), fresh[name]), name
    assert not model[1].bias.any()


def test_code_that_only_may_have_been_called_is_not() -> None:
    class Perhaps(nn.Module):
        def __init__(self, other: bool) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)
            if other:
                self.init_map()
            self.reset_cache()

        def init_map(self) -> None:
            nn.init.constant_(self.map.bias, 1.0)

        def reset_cache(self) -> None:
            self.cache: dict[str, int] = {}

    assert of(Perhaps(False), "map.bias")[1] == "bias"
    with pytest.warns(fastinit.ConstantWarning, match=r"map\.bias \(1\)"):
        fastinit.init_model_(Perhaps(True), SCHEME, seed=0)


class Named(nn.Module):
    def __init__(self, size: int = 4, prior: float = 0.5) -> None:
        super().__init__()
        linear = nn.Linear(size, size)
        self.gates = nn.Sequential(linear, nn.Sigmoid(), nn.Sequential(nn.Linear(size, size)))
        nn.init.constant_(linear.bias, 5.0)
        last = nn.Linear(size, size)
        nn.init.constant_(last.bias, 6.0)
        self.last = last
        inner = self.gates[2]
        inner = inner[0]
        with torch.no_grad():
            inner.bias.copy_(torch.full((size,), prior))
        self.layers = nn.ModuleList([nn.Linear(size, size) for _ in range(3)])
        for _, layer in enumerate(self.layers):
            nn.init.constant_(layer.bias, 7.0)
        for layer in (self.layers[0], self.layers[2]):
            nn.init.zeros_(layer.bias)
        lost = nn.Linear(size, size)
        nn.init.constant_(lost.bias, 8.0)
        self.last = nn.Sequential(self.last)


def test_names_of_modules_are_followed() -> None:
    model = Named()
    told = {name: of_quietly(model, name) for name, _ in model.named_parameters() if name.endswith("bias")}
    assert told.pop("gates.2.0.bias").endswith("and no code tells to what")
    assert told == {
        "gates.0.bias": "author: 5",
        "last.0.bias": "bias",  # which is in another place now
        "layers.0.bias": "author: zeros",
        "layers.1.bias": "author: 7",
        "layers.2.bias": "author: zeros",
    }
    rules = [("gates.2.0.bias", fastinit.KEEP)]
    with pytest.warns(fastinit.ConstantWarning, match=r"last\.0\.bias \(6\);"):
        fastinit.init_model_(model, SCHEME, rules, seed=0)


# ---- how parameters are made ----


class Made(nn.Module):
    """Makes parameters that nothing sets later."""

    def __init__(self, points: torch.Tensor, size: int = 4, start: float = 0.5) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.zeros(size, size))
        self.translation = nn.Parameter(torch.zeros(size, size))
        self.w_out = nn.Parameter(torch.empty(size, size))
        nn.init.zeros_(self.w_out)
        self.empty = nn.Parameter(torch.empty(size, size))
        self.sized = nn.Parameter(torch.Tensor(size, size))
        self.drawn = nn.Parameter(0.1 * torch.randn(size, size))
        self.later = nn.Parameter(torch.ones(size, size))
        nn.init.xavier_uniform_(self.later)
        self.ones = nn.Parameter(-2 * torch.ones(size, size).t())
        self.points = nn.Parameter(points.clone())
        diagonal = torch.eye(size)
        diagonal = diagonal.repeat(2, 1, 1)
        self.register_parameter("diagonal", nn.Parameter(diagonal))
        self.bias = nn.Parameter(torch.full((size,), start))
        filled = torch.empty(size, size).fill_(start)
        self.filled = nn.Parameter(filled)
        self.temperature: nn.Parameter = nn.Parameter(torch.tensor(math.log(0.25)))
        self.rezero = nn.Parameter(torch.zeros(1)) if size > 2 else None


MADE = {
    "weight": "author: zeros",
    "translation": "author: zeros",
    "w_out": "author: zeros",
    "empty": "linear map of Made",
    "sized": "linear map of Made",
    "drawn": "linear map of Made",
    "later": "linear map of Made",
    "ones": "author: -2",
    "points": "linear map of Made: set by its constructor, and no code tells to what",
    "diagonal": "stack of 2 maps: set by its constructor, and no code tells to what",
    "bias": "author: 0.5",
    "filled": "author: 0.5",
    "temperature": f"author: {math.log(0.25):.6g}",
    "rezero": "author: zeros",
}


def test_how_parameters_are_made_is_read() -> None:
    model = Made(torch.rand(5, 4))
    points, diagonal = model.points.detach().clone(), model.diagonal.detach().clone()
    with pytest.warns(fastinit.UncoveredWarning, match=r"points, diagonal"):
        plan = fastinit.plan(model, SCHEME, seed=0)
    assert {row.name: row.reason for row in plan.rows} == MADE
    plan.run_()
    assert torch.equal(model.points, points) and torch.equal(model.diagonal, diagonal)
    assert model.drawn.std() > 0.3 and (model.ones == -2).all() and model.temperature.exp().item() == 0.25
    around = nn.Sequential(Made(torch.rand(5, 4)))
    around.apply(lambda module: None)  # outside of any constructor: nobody sees it
    assert of_quietly(around, "0.ones") == "author: -2"


class Zeros(nn.Module):
    """Makes a weight as zeros, and others in some way."""

    def __init__(self, others: str, size: int = 4) -> None:
        super().__init__()
        self.others = others
        self.weight = nn.Parameter(torch.zeros(size, size))
        self.bias = nn.Parameter(torch.randn(size))
        if self.others == "empty":
            self.kernel = nn.Parameter(torch.empty(size, size))
        elif self.others == "drawn":
            self.kernel = nn.Parameter(torch.randn(size, size))
        elif self.others == "drawn later":
            self.kernel = nn.Parameter(torch.empty(size, size))
            nn.init.kaiming_uniform_(self.kernel)
        elif self.others == "drawn below":
            self.map = nn.Linear(size, size)
            nn.init.normal_(self.map.weight)


@pytest.mark.parametrize("others", ["none", "empty", "drawn below"])
def test_zeros_may_be_a_placeholder(others: str) -> None:
    plan = fastinit.plan(Zeros(others), SCHEME, seed=0)
    with pytest.warns(fastinit.ZerosWarning, match="zero, and are drawn now: weight;"):
        plan.run_()


@pytest.mark.parametrize("others", ["drawn", "drawn later"])
def test_zeros_beside_a_map_that_is_drawn_are_meant(others: str) -> None:
    model = nn.Sequential(Zeros("none"), Zeros(others))
    rows = {row.name: row.reason for row in fastinit.plan(model, SCHEME, seed=0).rows}
    assert rows["0.weight"] == rows["1.kernel"] == "linear map of Zeros" and rows["1.weight"] == "author: zeros"


def test_reset_code_comes_after_how_a_parameter_was_made() -> None:
    class Reset(nn.Module):
        def __init__(self, size: int = 4) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(size))
            self.weight = nn.Parameter(torch.ones(size, size))
            self.other = nn.Parameter(torch.ones(size, size))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.normal_(self.bias)
            nn.init.normal_(self.weight)

    assert of(Reset(), "bias")[1] == "bias" and of(Reset(), "weight")[1] == "linear map of Reset"
    assert of(Reset(), "other")[1] == "author: ones"


def test_published_values_are_not_kept_because_they_are_a_pattern() -> None:
    class Mixer(nn.Module):
        def __init__(self, width: int = 6, states: int = 4) -> None:
            super().__init__()
            decays = torch.arange(1, states + 1, dtype=torch.float32).repeat(width, 1)
            self.A_log = nn.Parameter(torch.log(decays))
            self.D = nn.Parameter(torch.ones(width))

    model = Mixer()
    before = model.A_log.detach().clone()
    model.A_log.data.fill_(7.0)
    fastinit.init_model_(model, SCHEME, seed=0, strict=True)
    torch.testing.assert_close(model.A_log.detach(), before)


def of_quietly(model: nn.Module, name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.UncoveredWarning)
        return of(model, name)[1]


def test_biases_that_were_constant_are_said() -> None:
    class Looped(nn.Module):
        def __init__(self, size: int = 4) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(size, size), nn.Linear(size, size)
            for each in filter(lambda module: isinstance(module, nn.Linear), self.modules()):
                nn.init.constant_(each.bias, 0.5)
            nn.init.zeros_(self.other.bias)

    with pytest.warns(fastinit.ConstantWarning, match=r"are zero now: one\.bias \(0\.5\);"):
        fastinit.init_model_(Looped(), SCHEME, seed=0)
    fastinit.init_model_(Looped(), SCHEME, [("*.bias", fastinit.Constant(0.5))], seed=0)
    filled = Looped()
    with torch.no_grad():
        for parameter in filled.parameters():
            parameter.fill_(7.0)
    fastinit.init_model_(filled, SCHEME, seed=0)  # no author has filled the maps


def test_reading_touches_nothing() -> None:
    calls = []

    class Property(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)
            nn.init.constant_(self.map.bias, self.level)

        @property
        def level(self) -> float:
            calls.append("level")
            return 1.0

    model = Property()
    calls.clear()
    state = torch.get_rng_state()
    with pytest.warns(fastinit.UncoveredWarning, match=r"map\.bias"):
        assert "no code tells to what" in of(model, "map.bias")[1]
    assert calls == [] and torch.equal(state, torch.get_rng_state())


def test_a_layer_that_passes_some_shapes_as_they_are_does_not_add_one() -> None:
    class ChannelNorm(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dim() == 3:
                x = super().forward(x.transpose(1, 2)).transpose(1, 2)
            return x

    assert (fastinit.init_model_(ChannelNorm(6), SCHEME, seed=0).weight == 1.0).all()


def test_tables_of_biases_and_scales_of_heads_are_no_maps() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_biases = nn.Parameter(torch.zeros(6, 49))
            self.relative_position_bias_table = nn.Parameter(torch.zeros(49, 6))
            self.q_scale = nn.Parameter(torch.ones(6, 1, 8))
            self.out = nn.Parameter(torch.zeros(6, 8))

    rows = {row.name: row.reason for row in fastinit.plan(Attention(), SCHEME, seed=0).rows}
    assert rows.pop("out") == "linear map of Attention" and rows.pop("q_scale") == "author: ones"
    assert set(rows.values()) == {"author: zeros"}


def test_whatever_a_constructor_calls_its_module() -> None:
    class Head(nn.Module):
        def __init__(s, size: int) -> None:
            super().__init__()
            s.logits = nn.Linear(size, 3)
            s.gate = nn.Parameter(torch.full((size,), 0.25))
            nn.init.constant_(s.logits.bias, -4.6)

    assert of(Head(4), "logits.bias")[1] == "author: -4.6"
    assert of(Head(4), "gate")[1] == "author: 0.25"


def test_code_that_is_not_for_values_is_not_run_again() -> None:
    logged = []

    class Logged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.init_log()
            self.init_bias()
            self.apply(self.reset_counts)

        def init_log(self) -> None:
            logged.append(1)

        def init_bias(self) -> None:
            nn.init.constant_(self.linear.bias, 0.5)

        def reset_counts(self, module: nn.Module) -> None:
            logged.append(1)

    model = Logged()
    built = len(logged)
    assert of_quietly(model, "linear.bias") == "author: 0.5"
    assert len(logged) == built
