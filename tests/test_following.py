"""A plan follows its model or refuses: whatever happens to memory between planning and running."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import needs_native
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastinit
from fastinit import _native
from fastinit.run.layouts import layout_of
from fastinit.run.places import CurrentTensors, Place, place_of

# New memory is full of zeros here, which a linear map seldom is.
pytestmark = pytest.mark.filterwarnings("ignore::fastinit.ZerosWarning")


def made() -> nn.Linear:
    return nn.Linear(8, 8, bias=False)


def wanted() -> torch.Tensor:
    return fastinit.init_model_(made(), "normal", seed=3).weight.detach()


def data_of_another_tensor(model: Any) -> None:
    model.weight.data = torch.zeros(8, 8)


def data_transposed(model: Any) -> None:
    model.weight.data = model.weight.data.t()


def data_in_columns(model: Any) -> None:
    model.weight.data = torch.zeros(8, 20)[:, 3:11]


def loaded_by_assignment(model: Any) -> None:
    model.load_state_dict({"weight": torch.zeros(8, 8)}, assign=True)


def replaced(model: Any) -> None:
    model.weight = nn.Parameter(torch.zeros(8, 8))


def converted_and_back(model: Any) -> None:
    model.double()
    model.float()


def storage_exchanged(model: Any) -> None:
    with torch.no_grad():
        model.weight.set_(torch.zeros(8, 8))


FOLLOWED = (
    data_of_another_tensor, data_transposed, data_in_columns, loaded_by_assignment, replaced, converted_and_back,
    storage_exchanged,
)  # fmt: skip


@needs_native
@pytest.mark.parametrize("change", FOLLOWED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("run_before", [False, True])
def test_a_plan_follows(change: Callable[[nn.Module], None], run_before: bool) -> None:
    model = made()
    plan = fastinit.plan(model, "normal", seed=3)
    if run_before:
        plan.run_()
    orphan = model.weight
    change(model)
    if orphan is not model.weight:
        orphan.data.fill_(7.0)
    plan.run_()
    assert torch.equal(model.weight, wanted())
    assert orphan is model.weight or bool((orphan == 7.0).all())


def half(model: Any) -> None:
    model.half()


def another_shape(model: Any) -> None:
    model.weight = nn.Parameter(torch.zeros(4, 8))


def on_meta(model: Any) -> None:
    model.to("meta")


def freed(model: Any) -> None:
    model.weight.untyped_storage().resize_(0)


def cut_short(model: Any) -> None:
    model.weight.untyped_storage().resize_(100)


def expanded(model: Any) -> None:
    model.weight.data = torch.zeros(8).expand(8, 8)


def parametrised(model: Any) -> None:
    parametrizations.weight_norm(model)


def removed(model: Any) -> None:
    del model.weight


def complex_view(model: Any) -> None:
    model.weight.data = model.weight.data.to(torch.complex64)


REFUSED = (half, another_shape, on_meta, freed, cut_short, expanded, parametrised, removed, complex_view)


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("run_before", [False, True])
def test_or_refuses_by_name(change: Callable[[nn.Module], None], run_before: bool) -> None:
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": made()})
    plan = fastinit.plan(model, "normal", seed=3)
    if run_before:
        plan.run_()
    with torch.no_grad():
        model["first"].weight.fill_(7.0)
    change(model["second"])
    try:
        with pytest.raises(fastinit.ParameterError, match=r"^second\.weight: ") as caught:
            plan.run_()
    finally:
        model["second"] = made()  # a report of a failure would read memory that is gone
    assert caught.value.name == "second.weight"
    assert bool((model["first"].weight == 7.0).all())


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_is_kept_has_the_dtype_that_the_plan_tells(is_frozen: bool, run_before: bool) -> None:
    model = nn.ModuleDict({"kept": made(), "drawn": made()})
    if is_frozen:
        model["kept"].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.KeptWarning)
        plan = fastinit.plan(model, "xavier_normal", [] if is_frozen else [("kept.weight", fastinit.KEEP)], seed=3)
    if run_before:
        plan.run_()
    model["kept"].weight = nn.Parameter(torch.full((8, 8), 2.0), requires_grad=False)  # other memory, and none of ours
    plan.run_()
    assert (model["kept"].weight == 2.0).all()
    before = model["drawn"].weight.clone()
    model["kept"].weight.data = model["kept"].weight.data.view(torch.int32)
    with pytest.raises(fastinit.ParameterError, match=r"kept\.weight: is kept.*torch.float32.*torch.int32"):
        plan.run_(seed=4)
    assert torch.equal(model["drawn"].weight, before)


def test_a_tie_that_is_cut_is_refused() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    plan = fastinit.plan(model, "normal", seed=0)
    plan.run_()
    model["head"].weight = nn.Parameter(torch.zeros(5, 4))
    with pytest.raises(fastinit.ParameterError, match=r"^head\.weight: was tied"):
        plan.run_()


def test_a_parametrisation_that_is_removed_is_refused() -> None:
    model = parametrizations.weight_norm(nn.Linear(4, 4))
    plan = fastinit.plan(model, "normal", seed=0)
    plan.run_()
    parametrize.remove_parametrizations(model, "weight")
    with pytest.raises(fastinit.ParameterError, match=r"^weight: is not computed as"):
        plan.run_()


def test_making_and_printing_touch_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(made(), parametrizations.weight_norm(nn.Linear(3, 3)))

    def refuse(*_: Any) -> Any:
        raise AssertionError("a plan that does not run has asked for memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "data_ptr", refuse)
        patched.setattr("fastinit.run.table.Table.__init__", refuse)
        plan = fastinit.plan(model, "xavier_uniform", seed=0)
        again = fastinit.plan(model, "xavier_uniform", seed=0)
        assert str(plan)
        assert plan.to_json()
        assert plan.filter("0.*").rows
        assert plan == again
        assert plan != fastinit.plan(model, "normal", seed=0)
        assert plan != fastinit.plan(model, "xavier_uniform", seed=1)
    plan.run_()


@needs_native
def test_threads_run_one_plan() -> None:
    model = nn.Linear(400, 400)
    plan = fastinit.plan(model, "normal", seed=3)
    plan.run_()
    want = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    errors: list[Exception] = []

    def run() -> None:
        try:
            for _ in range(20):
                plan.run_()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.equal(model.weight, want)


OVERLAPS: dict[str, Callable[[torch.Tensor], list[torch.Tensor]]] = {
    "a tensor and its transpose": lambda w: [w, w.t()],
    "strided twins": lambda w: [w.flatten()[::2], w.flatten()[::2]],
    "strides of two and four": lambda w: [w.flatten()[::2], w.flatten()[::4]],
    "a transpose and columns": lambda w: [w.t(), w[:, :3]],
    "rows and columns": lambda w: [w[2:4], w[:, 1:2]],
    "columns that share one": lambda w: [w[:, :3], w[:, 2:]],
    "a permuted block within": lambda w: [w.view(2, 3, 6).permute(1, 0, 2), w[5:]],
    "one element": lambda w: [w[3:4, 3:4], w[:, 3]],
}
APART: dict[str, Callable[[torch.Tensor], list[torch.Tensor]]] = {
    "columns": lambda w: [w[:, :3], w[:, 3:]],
    "rows": lambda w: [w[:3], w[3:]],
    "even and odd": lambda w: [w.flatten()[::2], w.flatten()[1::2]],
    "quadrants": lambda w: [w[:3, :3], w[3:, 3:], w[:3, 3:], w[3:, :3]],
    "transposed halves": lambda w: [w.t()[:2], w.t()[2:]],
}


@pytest.mark.parametrize("name", OVERLAPS)
@pytest.mark.parametrize("order", [1, -1])
def test_tensors_that_share_an_element_are_refused(name: str, order: int) -> None:
    tensors = OVERLAPS[name](torch.full((6, 6), 7.0))[::order]
    with pytest.raises(fastinit.ParameterError, match="shares memory with"):
        fastinit.init_(tensors, "normal", seed=0)
    assert all(bool((tensor == 7.0).all()) for tensor in tensors)


@pytest.mark.parametrize("name", APART)
def test_views_without_a_common_element_are_taken(name: str) -> None:
    fastinit.init_(APART[name](torch.zeros(6, 6)), "normal", seed=0)


def several() -> tuple[Any, CurrentTensors]:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    named = [(name, place_of(model[int(name[0])], name[2:], each)) for name, each in model.named_parameters()]
    return model, CurrentTensors(named)


def swapped(model: Any) -> None:
    first = model[0]._parameters
    first["weight"], first["bias"] = first["bias"], first["weight"]


def reordered(model: Any) -> None:
    model[0]._parameters["weight"] = model[0]._parameters.pop("weight")


def exchanged(model: Any) -> None:
    model[1].weight = nn.Parameter(torch.zeros(2, 2))


def given_a_bias(model: Any) -> None:
    model[1].bias = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("change", [swapped, reordered, exchanged, given_a_bias], ids=lambda change: change.__name__)
def test_current_tensors_are_found_anew_after_any_change(change: Callable[[nn.Module], None]) -> None:
    model, current = several()
    before = current.find()
    assert current.find() is before
    change(model)
    found = current.find()
    names = [(model[0], "weight"), (model[0], "bias"), (model[1], "weight")]
    assert all(each is owner._parameters[name] for each, (owner, name) in zip(found, names, strict=True))
    assert found is not before
    assert current.find() is found


def test_a_parameter_that_has_another_name_now_is_not_written() -> None:
    model, current = several()
    current.find()
    parameters = model[1]._parameters
    parameters["renamed"] = parameters.pop("weight")  # in the same place of the same module
    with pytest.raises(fastinit.ParameterError, match=r"1\.weight.*no parameter of this name"):
        current.find()


def test_tensors_that_were_given_stay_the_same() -> None:
    tensors = [torch.zeros(3), torch.zeros(2)]
    current = CurrentTensors((str(number), Place.of_tensor(each)) for number, each in enumerate(tensors))
    assert all(found is each for found, each in zip(current.find(), tensors, strict=True))
    assert current.find() is current.find()


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_layouts_are_those_of_the_same_memory(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(_native, "module", None)
    tensors = [torch.zeros(3, 4), torch.zeros(4, 3).t(), torch.zeros(2, dtype=torch.float64), torch.zeros(())]
    layout = layout_of(tensors)
    assert layout.is_of(tensors)
    others: list[list[torch.Tensor]] = [tensors[:-1], [*tensors, tensors[0]], tensors[::-1], []]
    for number, tensor in enumerate(tensors):
        for other in (tensor.clone(), tensor.view(-1) if number == 0 else tensor[None], tensor.to(torch.float16)):
            others.append([*tensors[:number], other, *tensors[number + 1 :]])
    for other in others:
        assert not layout.is_of(other)
    # Allocators may give a storage that is resized the memory that it had.
    sizes = {48: 48}
    nbytes = torch.UntypedStorage.nbytes
    monkeypatch.setattr(torch.UntypedStorage, "nbytes", lambda storage: sizes.get(nbytes(storage), nbytes(storage)))
    layout = layout_of(tensors)
    assert layout.is_of(tensors)
    sizes[48] = 44
    assert not layout.is_of(tensors)


def replaced(model: nn.Sequential) -> None:
    model[0] = nn.Linear(4, 4)


def deleted(model: nn.Sequential) -> None:
    del model[0]


def swapped(model: nn.Sequential) -> None:
    model[0], model[2] = model[2], model[0]


def replaced_above(model: nn.Sequential) -> None:
    model[1] = nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("change", [replaced, deleted, swapped, replaced_above])
def test_a_module_that_is_not_the_planned_one_is_not_written(
    change: Callable[[nn.Sequential], None], has_run: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    weight = "1.0.weight" if change is replaced_above else "0.weight"
    plan = fastinit.plan(model, "xavier_normal", seed=0)
    if has_run:
        plan.run_()
    change(model)
    before = {id(each): each.detach().clone() for row in plan.rows for each in (row.tensor,)}
    writes: list[Callable[[], None]] = [
        plan.run_,
        lambda: plan.blend_(0.5, 0.5),
        lambda: plan.run_(where={weight: torch.ones(4, 4, dtype=torch.bool)}),
        lambda: plan.run_units_({weight.removesuffix(".weight"): [1]}, outgoing={weight.removesuffix(".weight"): ()}),
    ]
    for write in writes:
        with pytest.raises(fastinit.ParameterError, match="module"):
            write()
    assert all(torch.equal(row.tensor, before[id(row.tensor)]) for row in plan.rows)


def test_a_module_that_is_wrapped_or_joined_by_others_is_written() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plan = fastinit.plan(model, "xavier_normal", seed=0)
    plan.run_()
    model[1] = checkpoint_wrapper(model[1])
    model.append(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.zero_()
    plan.run_()
    plan.run_()
    assert fastinit.verify(model, plan) == ()


def of_another(model: Any) -> None:
    model.b.weight = nn.Parameter(model.a.weight.data, requires_grad=False)


def of_a_part(model: Any) -> None:
    model.b.weight = nn.Parameter(model.a.weight.data[3:], requires_grad=False)


@pytest.mark.parametrize("share", [of_another, of_a_part])
def test_what_is_kept_may_not_share_memory_with_what_is_written(share: Callable[[Any], None]) -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    share(model)
    before = model["b"].weight.clone()
    plan = fastinit.plan(model, "xavier_normal", [("b.*", fastinit.KEEP)], seed=0)
    with pytest.raises(fastinit.ParameterError, match=r"a\.weight: shares memory with b\.weight, which is kept"):
        plan.run_()
    assert torch.equal(before, model["b"].weight)


def test_elements_without_a_mask_may_not_share_memory_with_those_that_are_written() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    plan = fastinit.plan(model, "xavier_normal", seed=0)
    plan.run_()
    model[1].weight.data = model[0].weight.data
    before = model[1].weight.detach().clone()
    everywhere = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(fastinit.ParameterError, match="shares memory"):
        plan.run_(where={"0.weight": everywhere}, seed=3)
    with pytest.raises(fastinit.ParameterError, match="shares memory"):
        plan.run_units_({"0": [1]}, outgoing={"0": "1"})
    assert torch.equal(before, model[1].weight)


def test_a_parameter_that_became_a_lazy_view_is_not_written() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))})
    plan = fastinit.plan(model, "normal", [("w", "normal")], seed=0)
    plan.run_()
    model["w"].data = model["w"].data.conj()
    before = model["w"].detach().resolve_conj()
    with pytest.raises(fastinit.ParameterError, match="w: is a lazily negated or conjugated view"):
        plan.run_()
    assert torch.equal(before, model["w"].detach().resolve_conj())


def test_a_parameter_that_became_sparse_is_refused_by_name() -> None:
    model = made()
    plan = fastinit.plan(model, "normal", seed=0)
    plan.run_()
    model.weight = nn.Parameter(torch.ones(8, 8).to_sparse())
    with pytest.raises(fastinit.ParameterError, match="weight: expected a dense"):
        plan.run_()


def test_a_storage_that_became_too_small_is_not_written_to() -> None:
    model = made()
    plan = fastinit.plan(model, "normal", seed=0)
    storage = model.weight.untyped_storage()
    for _ in range(50):
        storage.resize_(256)
        plan.run_()
        for nbytes in (192, 128, 64):
            storage.resize_(nbytes)
            with pytest.raises(fastinit.ParameterError, match="weight"):
                plan.run_()
