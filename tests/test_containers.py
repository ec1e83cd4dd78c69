"""What constructors put into containers, and under names that are put together, is known by its place."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fastinit


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def set_to_3(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.constant_(parameter, 3.0)
    return module


def zeroed(module: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(module.weight)
    module.bias.detach().fill_(2.0)
    return module


def names_of_3() -> Iterator[str]:
    yield from ("a", "b", "c")


# ---- of known places ----


class Comprehended(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([set_to_3(nn.Linear(4, 4)) for _ in range(depth)])
        self.heads = nn.ModuleDict({name: zeroed(nn.Linear(4, 4)) for name in names_of_3()})
        self.scales = nn.ParameterList(nn.Parameter(torch.full((4,), 0.5)) for _ in range(depth))
        self.chain = nn.Sequential(nn.Linear(4, 4), *[set_to_3(nn.Linear(4, 4)) for _ in range(depth)], nn.Linear(4, 4))


class Appended(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        for _ in range(depth):
            self.blocks.append(nn.Linear(4, 4))
            block = nn.Linear(4, 4)
            block = set_to_3(block)
            self.blocks.append(block)
        self.blocks.append(zeroed(nn.Linear(4, 4)))
        nn.init.constant_(self.blocks[-1].weight, 5.0)


class Listed(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(4, 4), nn.ReLU()]
        last = nn.Linear(4, 4)
        nn.init.constant_(last.weight, 4.0)
        layers.extend([last, nn.Tanh()])
        self.net = nn.Sequential(*layers)
        self.same = nn.Sequential(*[set_to_3(nn.Linear(4, 4))] * 2)


class OfMethods(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for _ in range(depth):
            self.stages.append(self.stage(depth))
        self.last = self.stage(1)

    def stage(self, depth: int) -> nn.Sequential:
        layers = [nn.Linear(4, 4)]
        for _ in range(depth):
            layers.append(zeroed(nn.Linear(4, 4)))
        return nn.Sequential(*layers)


class Chain(nn.Sequential):
    def __init__(self, depth: int = 3) -> None:
        layers = [nn.Linear(4, 4) for _ in range(depth)]
        layers.append(set_to_3(nn.Linear(4, 4)))
        super().__init__(*layers)


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(zeroed(nn.Linear(4, 4)), nn.ReLU(), set_to_3(nn.Linear(4, 4)))
        self.named = nn.Sequential(OrderedDict([("first", nn.Linear(4, 4)), ("last", set_to_3(nn.Linear(4, 4)))]))
        self.added = nn.Sequential()
        self.added.add_module("x", nn.Linear(4, 4))
        self.added.add_module("y", set_to_3(nn.Linear(4, 4)))
        self.nested = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), zeroed(nn.Linear(4, 4))]) for _ in range(2)])


class Keyed(nn.Module):
    def __init__(self, key: str = "first") -> None:
        super().__init__()
        self.heads = nn.ModuleDict({key: nn.Linear(4, 4)})
        nn.init.constant_(self.heads[key].weight, 3.0)
        self.others = nn.ModuleDict()
        for name in ("one", "two"):
            self.others[name] = nn.Linear(4, 4)
            nn.init.constant_(self.others[name].bias, -1.0)
        self.others["last"] = set_to_3(nn.Linear(4, 4))
        self.plain = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        nn.init.constant_(self.plain["b"].bias, -2.0)
        self.tensors = nn.ParameterDict({"a": nn.Parameter(torch.ones(3, 4)), "b": nn.Parameter(torch.randn(3, 4))})
        self.tensors["c"] = nn.Parameter(torch.full((3, 4), 3.0))


class Named(nn.Module):
    """As the entropy models of compressai and the kernels of S4D are."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        for i in range(depth):
            self.register_parameter(f"_factor{i}", nn.Parameter(torch.full((3, 4), 0.25)))
            self.register_parameter(
                "_drawn%d" % i,  # noqa: UP031
                nn.Parameter(torch.rand(3, 4)),
            )
            setattr(self, "level" + str(i), nn.Parameter(torch.full((4,), 2.0)))
            self.add_module(f"block{i}", zeroed(nn.Linear(4, 4)))
            setattr(self, f"map_{i}", nn.Linear(4, 4))
            nn.init.constant_(getattr(self, f"map_{i}").weight, 6.0)


class OfTensors(nn.Module):
    """As compressai's entropy models and the kernels of S4D are: local tensors, filled, under names that are passed."""

    def __init__(self, depth: int = 3, size: int = 4) -> None:
        super().__init__()
        self.factors, self.drawn = nn.ParameterList(), nn.ParameterList()
        for i in range(depth):
            drawn = torch.Tensor(size, 4)
            nn.init.uniform_(drawn, -0.5, 0.5)
            self.drawn.append(nn.Parameter(drawn))
            if i < depth - 1:
                factor = torch.Tensor(size, 4)
                factor.data.fill_(0.125)
                self.factors.append(nn.Parameter(factor))
        self.register("log_decay", torch.log(0.5 * torch.ones(size, 4)))
        self.register("steps", torch.rand(size))

    def register(self, name: str, tensor: torch.Tensor, rate: float | None = None) -> None:
        if rate == 0.0:
            self.register_buffer(name, tensor)
        else:
            self.register_parameter(name, nn.Parameter(tensor))
            getattr(self, name).rate = rate


class Registering(nn.Module):
    """As GPyTorch's modules do: with other names of arguments than torch's."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        root = torch.eye(size).repeat(2, 1, 1)
        self.register_parameter(name="raw_scale", parameter=nn.Parameter(torch.full((size,), 0.5)))
        self.register_parameter(name="root", parameter=nn.Parameter(root))

    def register_parameter(self, name: str, parameter: nn.Parameter | None) -> None:  # type: ignore[override]
        super().register_parameter(name, parameter)


def test_parameters_may_be_registered_by_other_names_of_arguments() -> None:
    reasons = {row.name: row.reason for row in of_quietly(Registering()).rows}
    assert reasons["raw_scale"] == "author: 0.5"
    assert reasons["root"].endswith("set by its constructor, and no code tells to what")


KNOWN = [Comprehended, Appended, Listed, OfMethods, Chain, Placed, Keyed, Named, OfTensors]


def is_constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def of_quietly(model: nn.Module) -> fastinit.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fastinit.plan(model, "xavier_uniform", seed=0)


@pytest.mark.parametrize("kind", KNOWN)
def test_parts_are_known_by_their_places(kind: Any) -> None:
    model = kind()
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan = of_quietly(model)
    assert {row.name for row in plan.rows} == set(values)
    for row in plan.rows:
        assert row.reason.startswith("author: ") is is_constant(values[row.name]), (row.name, row.reason)
    plan.run_()
    for name, parameter in model.named_parameters():
        assert is_constant(values[name]) is is_constant(parameter) or name.endswith("bias"), name
        if is_constant(values[name]):
            assert torch.equal(parameter, values[name]), name


def zero_init(module: nn.Module) -> nn.Module:
    nn.init.constant_(module.weight, 3.0)  # type: ignore[arg-type]
    return module.to(torch.get_default_dtype())


class NotUnderstood(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.plain = zero_init(nn.Linear(4, 4)), nn.Linear(4, 4)


def test_what_a_function_returns_that_nobody_understands_is_kept() -> None:
    reasons = {row.name: row.reason for row in of_quietly(NotUnderstood()).rows}
    assert reasons["map.weight"].endswith("set by its constructor, and no code tells to what")
    assert reasons["plain.weight"] == "linear map of Linear"


# ---- of places that are not known: nothing is said of what may be somewhere else ----


class InSomeRounds(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers.append(nn.Linear(4, 4))
            if i % 2:
                layers.append(set_to_3(nn.Linear(4, 4)))
        self.net = nn.Sequential(*layers)


class InTwoLoops(nn.Module):
    def __init__(self, depth: int = 2, width: int = 3) -> None:
        super().__init__()
        self.net = nn.ModuleList()
        for _ in range(depth):
            self.net.append(nn.Linear(4, 4))
            for _ in range(width):
                self.net.append(set_to_3(nn.Linear(4, 4)))
        for _ in range(width):
            self.net.append(nn.Linear(4, 4))


class Removed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [set_to_3(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 4)]
        layers.insert(0, nn.Linear(4, 4))
        layers.pop()
        self.net = nn.Sequential(*layers)
        while len(self.net) < 6:
            self.net.append(nn.Linear(4, 4))


class Replaced(nn.Module):
    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.net = nn.ModuleList([set_to_3(nn.Linear(4, 4)), nn.Linear(4, 4)])
        self.net[at] = nn.Linear(4, 4)


class Filtered(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(4, 4), *[set_to_3(nn.Linear(4, 4)) for i in range(depth) if i % 2]])
        self.net.extend(nn.Linear(4, 4) for _ in range(depth))


class OfTwoBranches(nn.Module):
    def __init__(self, first: bool = False) -> None:
        super().__init__()
        for i in range(2):
            if first:
                setattr(self, f"w{i}", nn.Parameter(torch.ones(4)))
            else:
                setattr(self, f"w{i}", nn.Parameter(torch.rand(4)))


UNKNOWN = [InSomeRounds, InTwoLoops, Removed, Replaced, Filtered, OfTwoBranches]


@pytest.mark.parametrize("kind", [*KNOWN, *UNKNOWN])
def test_nothing_is_said_of_another_part(kind: Any) -> None:
    model = kind()
    for row in of_quietly(model).rows:
        value = model.get_parameter(row.name).detach()
        if row.reason.startswith("author: "):
            assert is_constant(value) and str(row.distribution) == f"{float(value.flatten()[0]):g}", row.name


@pytest.mark.parametrize("kind", [*KNOWN, *UNKNOWN])
def test_maps_that_torch_draws_follow_the_scheme(kind: Any) -> None:
    model = kind()
    drawn = {name for name, each in model.named_parameters() if name.endswith("weight") and not is_constant(each)}
    assert {row.name for row in of_quietly(model).rows if row.reason.startswith("linear map")} >= drawn
