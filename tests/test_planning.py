"""What equal parameters of equal modules get is found once in a plan, and it is what each would get by itself."""

from __future__ import annotations

import gc
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import library_of_models
from torch import nn

import fastinit
from fastinit.capture import builders, repeats, resetting
from fastinit.capture.tapes import Taped
from fastinit.rules import resolve
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Roles
from fastinit.rules.rows import RowMaker
from fastinit.schemes.base import as_scheme


class Scaled(nn.Module):
    """A normalisation with a switch, which may be a bool or a number."""

    def __init__(self, switch: Any) -> None:
        super().__init__()
        self.zero_centered_gamma = switch
        self.weight = nn.Parameter(torch.ones(8))


class ScaledNorm(Scaled):
    """Its name tells that its weight is a scale."""


class Experts(nn.Module):
    """Its parameter has the shape of a convolution's, and is a stack of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 2, 3, 3))


class LayerScale(nn.Module):
    def __init__(self, init_values: float) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.ones(8))


class Bare(nn.Module):
    """A module that nobody knows, with parameters of these shapes."""

    def __init__(self, child: nn.Module | None = None, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        if child is not None:
            self.child = child


class Resets(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.map = nn.Linear(8, 8)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.map.weight, self.value)


class Norms(nn.Module):
    """Normalisations of several widths, which all get the same of its code."""

    def __init__(self, *widths: int, value: float = 0.5) -> None:
        super().__init__()
        self.value = value
        self.norms = nn.ModuleList(map(nn.BatchNorm1d, widths))

    def reset_parameters(self) -> None:
        for norm in self.norms:
            nn.init.constant_(as_any(norm).weight, self.value)


def with_own(shape: tuple[int, ...]) -> nn.Module:
    """A layer of torch.nn with a parameter of which its class does not tell."""
    module = nn.Linear(8, 8)
    module.proj = nn.Parameter(torch.ones(shape))
    return module


def switched(module: nn.Module) -> nn.Module:
    module.zero_centered_gamma = True  # type: ignore[assignment]
    return module


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def marked(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.note = "an attribute of its own"  # type: ignore[attr-defined]
    return module


# Modules that look alike at first sight. Each stands beside others of its class, shape or names.
ALIKE: dict[str, Callable[[], list[nn.Module]]] = {
    "layers": lambda: [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8), nn.LayerNorm(8)],
    "dtypes": lambda: [nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8, dtype=torch.float64)],
    "devices": lambda: [nn.Linear(8, 8), nn.Linear(8, 8, device="meta"), nn.Linear(8, 8)],
    "frozen": lambda: [nn.Linear(8, 8), frozen(nn.Linear(8, 8)), nn.Linear(8, 8)],
    "attributes": lambda: [nn.Linear(8, 8), marked(nn.Linear(8, 8)), nn.Linear(8, 8)],
    "groups": lambda: [nn.Conv2d(8, 8, 3), nn.Conv2d(32, 8, 3, groups=4), nn.ConvTranspose2d(8, 8, 3)],
    "padding": lambda: [nn.Embedding(6, 8), nn.Embedding(6, 8, padding_idx=1), nn.Embedding(6, 8, padding_idx=2)],
    "own parameters": lambda: [with_own((8, 8)), with_own((8,)), with_own((1, 8)), with_own((2, 8, 8))],
    "a switch": lambda: [ScaledNorm(1), ScaledNorm(True), ScaledNorm(False), Scaled(True)],
    "a switch on torch's": lambda: [nn.LayerNorm(8), switched(nn.LayerNorm(8)), nn.LayerNorm(8)],
    "numbers": lambda: [LayerScale(0.1), LayerScale(0.2), LayerScale(0.1), nn.PReLU(), nn.PReLU(init=0.5)],
    "shapes": lambda: [Bare(weight=(8, 8)), Bare(weight=(8,)), Bare(weight=(8, 8, 8)), Bare(weight=(8, 1, 8))],
    "siblings": lambda: [Bare(b=(8,), x_bias=(8,)), Bare(w=(8, 8), x_bias=(8,)), Bare(w=(2, 8, 8), x_bias=(2, 8))],
    "children": lambda: [Bare(x_bias=(8,)), Bare(nn.Linear(8, 8), x_bias=(8,)), Bare(nn.ReLU(), x_bias=(8,))],
    "stacks": lambda: [Bare(weight=(4, 8, 8)), nn.Conv1d(8, 4, 8), Bare(weight=(4, 8, 8))],
    "widths": lambda: [Norms(8, 4, 0, 2), Norms(4, 8, value=0.25), Norms(3, 8).bfloat16(), frozen(Norms(5))],
    "reset code": lambda: [Resets(1.0), Resets(2.0), nn.Linear(8, 8), Resets(1.0)],
}


def named(modules: list[nn.Module]) -> nn.Module:
    """Layers with numbers, and some of the modules under names of adapters and state spaces."""
    model = nn.Module()
    model.h = nn.ModuleList(modules)
    model.dt_proj, model.lora_B, model.proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    return model


RULES: list[tuple[Any, Any]] = [
    (nn.LayerNorm, fastinit.Normal(1.0, 0.1)),
    ("h.1.*", "orthogonal"),
    (fastinit.Where(type="Linear", role="bias"), "ones"),
    (lambda name, module, parameter: name == "h.2.weight", fastinit.Normal()),
]


def planned(model: nn.Module, scheme: Any, rules: Any, fan: Any) -> tuple[Any, list[str], Any]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = fastinit.plan(model, scheme, rules, fan=fan, seed=0)
        except ValueError as error:
            return str(error), [], None
    return made.rows, [str(each.message) for each in told], sorted(made._guessed)


@pytest.mark.parametrize("rules", [None, RULES], ids=["no rules", "rules"])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "by fan_out", "gpt2", "by layer"])
@pytest.mark.parametrize("which", ALIKE)
def test_equal_modules_get_what_each_gets_by_itself(
    monkeypatch: pytest.MonkeyPatch, which: str, scheme: str, rules: Any
) -> None:
    given: Any = scheme
    if scheme == "by fan_out":
        given = fastinit.VarianceScaling(1.0, "fan_out")
    if scheme == "by layer":
        given = fastinit.DepthScaled(fastinit.Normal(std=0.02), by="layer")
        rules = [(f"{name}.*", "zeros") for name in ("proj", "dt_proj", "lora_B")] + (rules or [])  # in no layer
    model = named(ALIKE[which]())
    fans = (None, "torch", "module")
    shared = [planned(model, given, rules, fan) for fan in fans]
    monkeypatch.setattr(Roles, "alike", lambda self, name, module: None)
    for fan, together in zip(fans, shared, strict=True):
        assert together == planned(model, given, rules, fan), fan


def test_two_parameters_are_told_of_that_have_one_canonical_name() -> None:
    inner = nn.Module()
    inner.weight, inner._orig_mod = nn.Parameter(torch.ones(8, 8)), nn.Linear(8, 8)
    with pytest.raises(fastinit.ParameterError, match="two parameters have this canonical name"):
        fastinit.plan(nn.Sequential(inner), "kaiming_normal")


def test_every_parameter_is_named_in_warnings() -> None:
    model = nn.ModuleList(nn.ConvTranspose2d(16, 2, 3) for _ in range(3))
    with pytest.warns(fastinit.FanWarning, match=r"0\.weight.*1\.weight.*2\.weight"):
        fastinit.plan(model, "kaiming_normal")


def test_plans_share_what_schemes_of_fans_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Linear(9, 7))
    with pytest.warns(fastinit.FanWarning, match=r"1\.weight"):
        rows = fastinit.plan(model, "xavier_normal", seed=0).rows
    monkeypatch.delattr(type(as_scheme("xavier_normal")), "distribution")
    with pytest.warns(fastinit.FanWarning, match=r"1\.weight"):
        assert fastinit.plan(model, "xavier_normal", seed=0).rows == rows


@pytest.mark.parametrize("fan", [None, "torch", "module", "jax", fastinit.Fans(3, 5), fastinit.FanAxes(0, 1)], ids=str)
def test_what_plans_share_is_what_each_would_find(fan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was planned before: by other conventions, in other modules, and with zeros of another sign."""
    tensors = [(nn.Conv2d(6, 6, 3, groups=3), "kaiming_normal"), (nn.ConvTranspose2d(6, 2, 3), "kaiming_normal")]
    tensors += [(Experts(), "kaiming_normal"), (nn.LSTM(2, 6), "kaiming_normal")]
    tensors += [(nn.Linear(2, 6, dtype=dtype), "kaiming_normal") for dtype in (torch.float32, torch.bfloat16)]
    tensors += [(nn.Linear(2, 6), fastinit.Normal(mean, 0.0)) for mean in (0.0, -0.0)]

    def planned() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastinit.FanWarning)
            plans = [fastinit.plan(model, scheme, fan=fan, seed=0) for model, scheme in tensors]
        return [(row.fans, repr(row.distribution)) for plan in plans for row in plan.rows]

    together = planned()
    monkeypatch.setattr(Resolver, "_lasting_key", lambda self, scheme: None)
    assert planned() == together


def test_what_plans_share_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_MOST_LASTING", 3)
    fastinit.plan(nn.Sequential(*[nn.Linear(2, n) for n in range(2, 12)]), "xavier_normal", seed=0)
    assert len(resolve._LASTING) <= 3


def test_lists_of_equal_tensors_of_several_kinds() -> None:
    tensors = [torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float64), torch.ones(4, 4), torch.ones(2, 8)]
    fastinit.init_(tensors, "xavier_uniform", names=list("abcd"), seed=0)
    for name, tensor in zip("abcd", tensors, strict=True):
        alone = torch.ones_like(tensor)
        fastinit.init_([alone], "xavier_uniform", names=[name], seed=0)
        assert torch.equal(tensor, alone)


def test_planning_leaves_no_cycles() -> None:
    """Memory of a model is free as soon as nobody has the model, and not when Python next looks for cycles."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    weight = weakref.ref(model[0].weight)
    gc.collect()
    gc.disable()
    try:
        made = fastinit.plan(model, "kaiming_normal")
        del made, model
        assert weight() is None
    finally:
        gc.enable()


# ---- of many equal layers, few are read ----


class Config:
    def __init__(self, how: str, layers: int = 9) -> None:
        self.how, self.layers = how, layers

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Layer(nn.Module):
    """A layer whose initial values depend on its number where `how` says so, which cannot be seen in the layer."""

    built = 0

    def __init__(self, how: str, index: int, layers: int) -> None:
        super().__init__()
        self.index = Layer.built if how == "counts itself" else index
        Layer.built += 1
        self.map, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.factor = nn.Parameter(torch.full((8,), 0.1))
        self.token = nn.Parameter(torch.empty(1, 1, 8).normal_(0.0, 0.3))
        with torch.no_grad():
            if how == "table":
                self.factor.copy_(torch.arange(8.0))
            elif how == "factor by number":
                self.factor.fill_(1.0 / (1 + index))
            elif how == "factor by depth":
                self.factor.fill_(0.5 if layers > 6 else 0.25)
            elif how == "token by number":
                self.token.normal_(0.0, 1.0 / (1 + index))
            elif how == "order":
                self.factor.copy_(torch.randperm(8).float())
            elif how == "looks at what it has drawn":
                self.factor.fill_(self.map.weight[0, 0].item())
            elif how == "numbers drawn with gradients":
                self.token = nn.Parameter(
                    torch.bernoulli(torch.full((1, 1, 8), 0.5)) * torch.ones(1, requires_grad=True)
                )


def as_any(module: Any) -> Any:
    return module


class Inheriting(Layer):
    """A layer whose code is that of its base."""


class PreTrainedModel(nn.Module):
    """A model that says how it is built, as those of transformers do."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        how, numbers = config.how, range(config.layers)
        self.table = nn.Embedding(20, 8)
        if how == "built backwards":
            numbers = range(config.layers - 1, -1, -1)
        kind = Inheriting if how == "inherits" else Layer
        if how == "builds one more":
            kind(how, 0, config.layers)
        layers = [kind(how, number, config.layers) for number in numbers]
        self.layers = nn.ModuleList(sorted(layers, key=lambda each: as_any(each).index))
        self.lists = [layers]
        for index, layer in enumerate(self.layers):
            with torch.no_grad():
                self.reset(layer, index)

    def reset(self, layer: Any, index: int) -> None:
        how, last = self.config.how, self.config.layers - 1
        if how == "divides":
            layer.map.weight.div_((2.0 * (index + 1)) ** 0.5)
        elif how == "multiplies":
            layer.factor.mul_(0.5)
        elif how == "last norm" and index == last:
            layer.norm.weight.zero_()
        elif how in ZEROED and ZEROED[how](index, last):
            layer.map.weight.zero_()


# The layers that are set to zero, by their number and that of the last one.
ZEROED: dict[str, Callable[[int, int], bool]] = {
    "first is zero": lambda index, last: index == 0,
    "fifth is zero": lambda index, last: index == 4,
    "last is zero": lambda index, last: index == last,
    "even ones are zero": lambda index, last: index % 2 == 0,
    "odd ones are zero": lambda index, last: index % 2 == 1,
    "every third is zero": lambda index, last: index % 3 == 2,
    "second half is zero": lambda index, last: index > last / 2,
}
AGREEING = ["nothing", "inherits", "table", "factor by depth"]
DIFFERING = [
    *("factor by number", "token by number", "order", "looks at what it has drawn", "counts itself", "divides"),
    *("multiplies", "last norm", "built backwards", "builds one more", "numbers drawn with gradients", *ZEROED),
]


def read(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, whole: bool, rules: Any = None) -> tuple[Any, int]:
    """The rows of a plan, and how many layers were built for it."""
    builders._twins.clear()
    with monkeypatch.context() as patch:
        if whole:
            patch.setattr(builders, "repeats_of", lambda modules: None)
        Layer.built = 0
        rows = fastinit.plan(model, "kaiming_normal", rules, seed=0).rows
    builders._twins.clear()
    return rows, Layer.built


def assert_equal_rows(rows: Any, others: Any) -> None:
    assert [row.name for row in rows] == [row.name for row in others]
    for row, other in zip(rows, others, strict=True):
        both = row.distribution, other.distribution
        if row != other:
            assert row._replace(distribution=None) == other._replace(distribution=None), row.name
            tables = [each.tape.replay(3) for each in both if isinstance(each, Taped)]
            assert len(tables) == 2 and torch.equal(*tables), row.name


# Four layers of nine are built where they agree, and all of them after these where they do not.
@pytest.mark.filterwarnings("ignore:no rule covers")
@pytest.mark.parametrize("how", [*AGREEING, *DIFFERING])
def test_four_of_equal_layers_tell_what_all_tell(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    model = PreTrainedModel(Config(how))
    before = Layer.__init__, dict(Inheriting.__dict__)
    rows, built = read(model, monkeypatch, whole=False)
    assert (Layer.__init__, dict(Inheriting.__dict__)) == before
    others, of_whole = read(model, monkeypatch, whole=True)
    assert_equal_rows(rows, others)
    assert of_whole >= 9 and (built == 4 if how in AGREEING else built >= of_whole)


def test_nothing_is_run_for_a_model_that_is_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PreTrainedModel(Config("nothing"))
    rows = fastinit.plan(model, "kaiming_normal", seed=0).rows
    monkeypatch.delattr(builders, "nothing_drawn")
    assert fastinit.plan(model, "kaiming_normal", seed=0).rows == rows


def test_what_an_author_gives_is_resolved_once_for_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[Any] = []
    make = RowMaker.row
    monkeypatch.setattr(RowMaker, "row", lambda *given: resolved.append(given) or make(*given))
    made = fastinit.plan(Norms(8, 4, 2, 8), "kaiming_normal", seed=0)
    assert len(resolved) == 2  # a weight and a bias
    assert [row.shape for row in made.rows if row.action == "init"] == [(n,) for n in (8, 4, 2, 8) for _ in range(2)]


def test_exact_numbers_are_read_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = PreTrainedModel(Config("nothing"))
    rows, built = read(model, monkeypatch, whole=False, rules=[("layers.4.map.weight", "own")])
    assert built == 4 + 9
    assert_equal_rows(rows, read(model, monkeypatch, whole=True, rules=[("layers.4.map.weight", "own")])[0])
    Layer.built = 0
    fastinit.plan(model, "own", seed=0)
    assert Layer.built == 9
    fastinit.plan(model, "kaiming_normal", seed=0)
    assert Layer.built == 9  # what was read of all serves every scheme
    builders._twins.clear()


def test_layers_that_differ_in_what_can_be_seen_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Switched(PreTrainedModel):
        def __init__(self, config: Config) -> None:
            super().__init__(config)
            for index, layer in enumerate(map(as_any, self.layers)):
                layer.is_wide, layer.step = index % 2 == 0, (1, 2, 3)[index % 3]

    with torch.device("meta"):
        model = Switched(Config("nothing", layers=12))
    for index in (1, 5):
        as_any(model.layers[index]).is_wide = True
    assert repeats.repeats_of(list(model.modules())) is None  # no five are alike
    rows, built = read(model, monkeypatch, whole=False)
    assert built == 12
    assert_equal_rows(rows, read(model, monkeypatch, whole=True)[0])


def test_other_threads_build_whole_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Asking(PreTrainedModel):
        def reset(self, layer: Any, index: int) -> None:
            thread = threading.Thread(target=lambda: made.append(Layer("nothing", index, 9)))
            thread.start()
            thread.join()

    with torch.device("meta"):
        model = Asking(Config("nothing"))
    made.clear()
    read(model, monkeypatch, whole=False)
    assert len(made) >= 9 and len({id(each.__dict__) for each in made}) == len(made)
    assert not any(each.map.weight.is_meta for each in made)


def test_a_thread_that_finds_another_one_at_it_reads_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PreTrainedModel(Config("nothing"))
    with repeats._patching:
        rows, built = read(model, monkeypatch, whole=False)
    assert built == 9
    assert_equal_rows(rows, read(model, monkeypatch, whole=False)[0])


# ---- and of many equal layers, few are reset ----


class Given(NamedTuple):
    """What a layer is given: a list is an object of its own."""

    std: float = 0.02


class Block(nn.Module):
    """A layer with reset code, which looks at what the layer holds."""

    resets = 0

    def __init__(self, index: int, given: Given) -> None:
        super().__init__()
        self.index, self.given, self.stds, self.kind = index, given, (0.1, 0.2), "usual"
        self.map, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.convolution = nn.Conv1d(8, 8, 1)  # which has a __setstate__
        self.factor = nn.Parameter(torch.ones(8))
        self.register_buffer("mask", torch.ones(8), persistent=False)

    def reset_parameters(self) -> None:
        Block.resets += 1
        code = getattr(self.given, "code", None)
        nn.init.normal_(self.map.weight, std=self.given.std)
        nn.init.constant_(self.norm.weight, 1.0 + self.norm.eps)
        nn.init.constant_(self.factor, 0.1 if self.kind == "usual" else 0.3)
        if not self.mask.dtype.is_floating_point or not self.map.weight.requires_grad:
            nn.init.zeros_(self.map.weight)
        if getattr(self.factor, "is_special", False) or self._forward_hooks or self.stds[0] != 0.1:
            nn.init.zeros_(self.factor)
        if code is not None:
            code(self)


class Blocks(nn.Module):
    """A model that resets its layers, and may have code for all of them."""

    def __init__(self, code: Any = None, *, layers: int = 9, for_all: Any = None, by_name: Any = None) -> None:
        super().__init__()
        self.for_all, self.by_name = for_all, by_name
        given: Any = Given()
        if code is not None:
            given = types.SimpleNamespace(std=0.02, code=code)
        self.layers = nn.ModuleList(Block(index, given) for index in range(layers))
        self.head = nn.Linear(8, 8, bias=False)

    def init_weights(self) -> None:
        if self.by_name is not None:
            self.by_name(self)
        for index, layer in enumerate(map(as_any, self.layers) if self.for_all else ()):
            if self.for_all(index, len(self.layers) - 1):
                layer.map.weight.zero_()


def changed(change: Callable[[Any], object], at: int = 5) -> Callable[[], Blocks]:
    def make() -> Blocks:
        model = Blocks()
        change(model.layers[at])
        return model

    return make


def tied() -> Blocks:
    model = Blocks()
    as_any(model.layers[5]).map.weight = model.head.weight
    return model


def of_index(block: Any) -> None:
    nn.init.constant_(block.factor, float(block.index))


def of_what_was_drawn(block: Any) -> None:
    nn.init.constant_(block.factor, block.map.weight[0, 0].item())


def in_an_order(block: Any) -> None:
    block.factor.copy_(torch.randperm(8).float())


def raises(block: Any) -> None:
    raise KeyError("nobody home")


def of_a_name(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name == "layers.5.map":
            nn.init.zeros_(as_any(module).weight)


def of_a_parameters_name(model: Any) -> None:
    for name, parameter in model.layers.named_parameters():
        if name == "5.factor":
            nn.init.zeros_(parameter)


def of_a_childs_name(model: Any) -> None:
    for name, child in model.layers.named_children():
        if name == "5":
            nn.init.zeros_(child.map.weight)


def without_names(model: nn.Module) -> None:
    model.apply(lambda module: nn.init.zeros_(module.bias) if isinstance(module, nn.Linear) and module.bias is not None
                else None)  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.constant_(module.weight, 0.5)
    for parameter in model.parameters():
        if parameter.shape == (8,):
            parameter.mul_(3.0)


class Zeroing(nn.LayerNorm):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


RESET_ALIKE: dict[str, Callable[[], nn.Module]] = {
    "nothing": Blocks,
    "a table": lambda: Blocks(lambda block: block.factor.copy_(torch.arange(8.0))),
    "indices that count": lambda: Blocks(lambda block: nn.init.constant_(block.factor, float(block.index >= 0))),
    "without names": lambda: Blocks(by_name=without_names),
    "hooks of the first": changed(lambda block: block.register_load_state_dict_post_hook(print), at=0),
    "parents": lambda: changed(lambda block: None)().apply(lambda module: setattr(module, "note", ("a", 1))),
}
# One layer is seen to be another one, and is read beside the four.
RESET_BESIDE: dict[str, Callable[[], nn.Module]] = {
    "another word": changed(lambda block: setattr(block, "kind", "special")),
    "another tuple": changed(lambda block: setattr(block, "stds", (0.3, 0.2))),
    "another class": changed(lambda block: setattr(block, "norm", Zeroing(8))),
}
RESET_APART: dict[str, Callable[[], nn.Module]] = {
    **{how: lambda code=code: Blocks(for_all=code) for how, code in ZEROED.items()},  # type: ignore[misc]
    "by the name of a module": lambda: Blocks(by_name=of_a_name),
    "by the name of a parameter": lambda: Blocks(by_name=of_a_parameters_name),
    "by the name of a child": lambda: Blocks(by_name=of_a_childs_name),
    "by index": lambda: Blocks(of_index),
    "looks at what it has drawn": lambda: Blocks(of_what_was_drawn),
    "an order": lambda: Blocks(in_an_order),
    "raises": lambda: Blocks(raises),
    "another object": changed(lambda block: setattr(block, "given", Given(0.5))),
    "an equal object": changed(lambda block: setattr(block, "given", Given())),
    "another number of torch": changed(lambda block: setattr(block.norm, "eps", 0.5)),
    "another dtype of a buffer": changed(lambda block: setattr(block, "mask", torch.ones(8, dtype=torch.int64))),
    "another mode": changed(lambda block: block.norm.eval()),
    "frozen": changed(lambda block: block.map.weight.requires_grad_(False)),
    "an attribute of a parameter": changed(lambda block: setattr(block.factor, "is_special", True)),
    "a hook": changed(lambda block: block.register_forward_hook(print)),
    "code of its own": changed(lambda block: setattr(block, "reset_parameters", lambda: block.given)),
    "tied": tied,
}


def reset_and_read(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> tuple[Any, int]:
    """The rows and warnings of a plan, and how many layers were reset for it."""
    with monkeypatch.context() as patch:
        if whole:
            patch.setattr(resetting, "repeats_of", lambda modules: None)
        Block.resets = 0
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            rows = fastinit.plan(model, "kaiming_normal", seed=0).rows
    return (rows, [str(each.message) for each in told]), Block.resets


@pytest.mark.parametrize("how", [*RESET_ALIKE, *RESET_BESIDE, *RESET_APART])
def test_four_of_equal_layers_are_reset_for_all(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    model = {**RESET_ALIKE, **RESET_BESIDE, **RESET_APART}[how]()
    (rows, told), resets = reset_and_read(model, monkeypatch, whole=False)
    (others, told_of_whole), of_whole = reset_and_read(model, monkeypatch, whole=True)
    assert_equal_rows(rows, others)
    assert told == told_of_whole
    few = 4 if how in RESET_ALIKE else 5
    assert of_whole >= 8 and (resets >= of_whole if how in RESET_APART else resets == few)


def test_exact_numbers_are_of_a_reset_of_every_layer() -> None:
    Block.resets = 0
    fastinit.plan(Blocks(), "own", seed=0)
    assert Block.resets == 9


def test_layers_that_refer_to_each_other_stay_so_in_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code finds every layer, under any name, in the copy; and what is shared is shared."""

    def neighbours(block: Any) -> None:
        of_copy = block.given.layers
        assert len(of_copy) == 9 and any(each is block for each in of_copy) and all(each.map for each in of_copy)
        assert block.given is of_copy[4].given and block.given is not model.layers[0].given

    model: Any = Blocks(neighbours)
    model.layers[0].given.layers = list(model.layers)
    (rows, told), resets = reset_and_read(model, monkeypatch, whole=False)
    assert resets == 4 and not told and {row.reason for row in rows if "factor" in row.name} == {"author: 0.1"}


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"n_layer": 8, "n_embd": 64, "n_head": 4},
    "LlamaForCausalLM": {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    "T5ForConditionalGeneration": {"num_layers": 8, "d_model": 64, "d_ff": 96, "num_heads": 4},
    "BertForMaskedLM": {"num_hidden_layers": 8},
    "ViTModel": {},
    "HubertModel": {},
    "RwkvModel": {"num_hidden_layers": 8, "hidden_size": 64},  # its vectors depend on the number of the layer
    "MambaModel": {"num_hidden_layers": 8, "hidden_size": 64},
    "ConvNextModel": {},
    "SwinModel": {},
    "MixtralModel": {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8},
}
TIMM = [
    *("vit_base_patch16_224", "convnext_tiny", "resnet50", "swin_tiny_patch4_window7_224", "mixer_b16_224"),
    *("deit3_small_patch16_224", "cait_xxs24_224", "nfnet_f0", "regnety_032", "efficientnet_b0"),
    *("beit_base_patch16_224", "eva02_small_patch14_224"),  # fix_init_weight: they divide by the number of the layer
]


def assert_read_as_a_whole(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, others = (read(model, monkeypatch, whole=each)[0] for each in (False, True))
    assert_equal_rows(rows, others)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_models_of_transformers_are_read_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_of_models("transformers")
    kind = getattr(library, name)
    with torch.device("meta"):
        model = kind(kind.config_class(**TRANSFORMERS[name]))
    assert_read_as_a_whole(model, monkeypatch)


@pytest.mark.zoo
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_are_read_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = library_of_models("timm").create_model(name)
    assert_read_as_a_whole(model, monkeypatch)
