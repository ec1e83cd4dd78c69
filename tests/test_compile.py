"""torch.compile of code that calls our functions: no break in the graph, and the values of the calls without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import needs_native
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastinit import functional, init_

pytestmark = [
    needs_native,
    # torch's own, of its compiler.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BACKENDS = ["eager", "aot_eager", "inductor"]
CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "uniform_": lambda x: functional.uniform_(x, -0.5, 0.25),
    "normal_": lambda x: functional.normal_(x, 0.5, 2.0),
    "trunc_normal_": lambda x: functional.trunc_normal_(x, std=0.02, a=-0.04, b=0.04),
    "xavier_normal_": lambda x: functional.xavier_normal_(x, gain=2.0),
    "kaiming_uniform_": lambda x: functional.kaiming_uniform_(x, a=5**0.5, mode="fan_out"),
    "orthogonal_": functional.orthogonal_,
    "sparse_": lambda x: functional.sparse_(x, 0.25),
    "eye_": functional.eye_,
    "ones_": functional.ones_,
    "variance_scaling_": lambda x: functional.variance_scaling_(x, 2.0, "fan_avg"),
}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    # Kernels of one value at a time, for which nothing is compiled to find out what this processor has.
    options = {"cpp.vec_isa_ok": False} if backend == "inductor" else None
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=backend, options=options)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_traced_call_has_the_bits_of_the_call(call: Callable[[torch.Tensor], Any]) -> None:
    wanted, given = torch.empty(20, 12), torch.empty(20, 12)
    torch.manual_seed(5)
    call(wanted)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert compiled(call, "aot_eager")(given) is given
    assert torch.equal(given, wanted)
    assert torch.equal(torch.get_rng_state(), after)


def several(one: torch.Tensor, two: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
    functional.normal_(one)
    functional.xavier_uniform_(weight)
    functional.normal_([two, one[:2]])
    return one.sum() + two.sum() + weight.detach().sum()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_several_calls_draw_their_seeds_in_order_at_every_run(backend: str) -> None:
    function = compiled(several, backend)
    for seed in (1, 2):
        wanted, given = ((torch.empty(40, 3), torch.empty(7), nn.Parameter(torch.empty(8, 9))) for _ in range(2))
        torch.manual_seed(seed)
        total = several(*wanted)
        torch.manual_seed(seed)
        assert torch.allclose(function(*given), total, rtol=1e-4)
        for one, other in zip(given, wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
def test_equal_calls_are_two_calls() -> None:
    one, two = torch.empty(50), torch.empty(50)

    def function(one: torch.Tensor, two: torch.Tensor) -> None:
        functional.normal_(one)
        functional.normal_(two)

    compiled(function, "inductor")(one, two)
    assert not torch.equal(one, two)


@pytest.mark.slow
def test_a_generator_breaks_the_graph_and_nothing_else() -> None:
    def function(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return functional.normal_(x, generator=generator) + 1

    wanted = function(torch.empty(9), torch.Generator().manual_seed(3))
    given = torch.compile(function, backend="eager")(torch.empty(9), torch.Generator().manual_seed(3))
    assert torch.equal(given, wanted)


def test_what_is_wrong_is_told_when_the_graph_runs() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        compiled(functional.xavier_normal_, "eager")(torch.empty(4))
    assert torch.is_grad_enabled()


class Filling(nn.Module):
    """Its forward pass fills new memory."""

    def __init__(self, call: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filled = torch.empty_like(x)
        self.call(filled)
        return x + filled


TRACES: dict[str, Callable[[nn.Module, torch.Tensor], Callable[..., Any]]] = {
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "export, strict": lambda model, x: torch.export.export(model, (x,), strict=True).module(),
    "make_fx": lambda model, x: make_fx(model)(x),
    "make_fx, fake": lambda model, x: make_fx(model, tracing_mode="fake")(x),
    "make_fx, symbolic": lambda model, x: make_fx(model, tracing_mode="symbolic")(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("name", ["normal_", "orthogonal_", "ones_"])
def test_other_traces_hold_the_call(name: str, trace: Callable[..., Callable[..., Any]]) -> None:
    model = Filling(CALLS[name])
    graph = trace(model, torch.zeros(20, 12))
    x = torch.rand(20, 12)
    for seed in (1, 2):
        torch.manual_seed(seed)
        wanted = model(x)
        torch.manual_seed(seed)
        assert torch.equal(graph(x), wanted)


@pytest.mark.parametrize(
    ("trace", "call"),
    [
        (lambda model, x: make_fx(model)(x), lambda x: init_([x], "zeros")),
        (torch.jit.trace, lambda x: init_([x], "zeros")),
        (torch.jit.trace, CALLS["normal_"]),
    ],
)
def test_traces_that_cannot_hold_a_call_are_refused(trace: Callable[..., Any], call: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="a graph is being traced"):
        trace(Filling(call), torch.zeros(20, 12))
