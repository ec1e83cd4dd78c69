"""Adapters: initialisation as a function of a module or of a tensor, as other libraries ask for it.

docs/DISTRIBUTED.md has examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastinit.distributed.agreement import ranks_of, shared_seed
from fastinit.distributed.held import is_sharded, local_tensor
from fastinit.errors import ParameterError
from fastinit.meta.allocation import allocate_
from fastinit.meta.buffers import plan_restoration
from fastinit.model import check_all_written, init_, materialize_, plan
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row
from fastinit.recipes.files import Recipe
from fastinit.rules.select import Rule, Selector
from fastinit.run.names import named_modules
from fastinit.run.streams import draw_seed
from fastinit.schemes.base import Scheme, as_scheme

__all__ = ["init_method", "init_weights", "param_init_fn"]


def init_weights(
    scheme: str | Scheme | Recipe, rules: Sequence[Rule | tuple[Selector, Any]] | None = None, **options: Any
) -> Callable[..., None]:
    """A function (model, buffer_device=None) that initialises a model after `model.to_empty(device=...)`.

    After `to_empty`, parameters hold nothing and buffers have lost their values. The function writes every parameter
    and computes every buffer again. Parameters that were one object before `to_empty` are separate after it; tie them
    before the call. The method `init_weights` of torchtitan's models is such a function.

    Args:
        scheme, rules: as for `plan`.
        options: further arguments of `materialize_`, except device and dtype.

    Raises:
        TypeError, ValueError: the function raises it if `materialize_` does, or if nothing covers a parameter.
    """

    def initialise(model: nn.Module, buffer_device: torch.device | str | None = None) -> None:
        parameter = next(model.parameters(), None)
        device = buffer_device or ("cpu" if parameter is None else local_tensor(parameter).device)
        of_plan = {key: value for key, value in options.items() if key not in ("buffers", "build")}
        with warnings.catch_warnings():  # materialize_ gives the same warnings
            warnings.simplefilter("ignore")
            made = plan(model, scheme, rules, **of_plan)
        if made.uncovered:
            raise ValueError(f"no rule covers {', '.join(made.uncovered)}, which hold nothing after to_empty")
        before = {module: dict(module._buffers) for module in model.modules()}
        _forget(before)
        try:
            materialize_(model, scheme, rules, device=device, **options)
        except Exception:
            for module, buffers in before.items():
                module._buffers.update(buffers)
            raise

    return initialise


def _forget(buffers: dict[nn.Module, dict[str, torch.Tensor | None]]) -> None:
    """Put buffers on the meta device. Buffers that are one object stay one."""
    twins: dict[int, torch.Tensor] = {}
    for module, own in buffers.items():
        for own_name, buffer in own.items():
            if buffer is not None:
                twin = twins.setdefault(id(buffer), torch.empty_like(buffer, device="meta"))
                module._buffers[own_name] = twin


def param_init_fn(
    model: nn.Module,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    device: torch.device | str | int,
    dtype: torch.dtype | None = None,
    buffers: Sequence[tuple[Selector, Callable[[Any], Any]]] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Callable[[nn.Module], None]:
    """The `param_init_fn` for FullyShardedDataParallel (FSDP1): a function that gives one module memory and values.

    FSDP1 calls the function for every module that it is about to flatten. Only the parameters of one FSDP1 unit are
    whole at any time. Planning and checking happen here, before wrapping: `model` is still on the meta device, and
    its names are the ones that decide the random numbers.

    Args:
        model: the model that will be wrapped.
        device, dtype, buffers: as for `materialize_`.
        seed: as for `plan`. None: the call draws a seed, and all ranks take rank 0's. All ranks of the default process
            group must then make the call. If FSDP1 wraps on some ranks only, as in a pipeline stage, pass an int.
        scheme, rules, generator, options: as for `plan`.

    Raises:
        TypeError, ValueError: as in `materialize_`, or a weight is parametrised: it cannot be set in parts.
    """
    place = torch.device(device)
    seed = shared_seed(draw_seed(generator), [ranks_of()]) if seed is None else seed
    made = plan(model, scheme, rules, seed=seed, **options)
    check_all_written(made)
    computed = [row.name for row in made.rows if row.place.assignment is not None]
    if computed:
        raise ParameterError(computed[0], "is set through a parametrization; materialise the model before wrapping it")
    restoration = plan_restoration(model, buffers, seed=seed)
    planned = {id(row.tensor) for row in made.rows}
    rows = {id(row.tensor): row for row in made.rows if row.action == "init"}
    names = {each.module: each for each in named_modules(model)}
    written: set[int] = set()

    def initialise(module: nn.Module) -> None:
        own: list[tuple[str, Row]] = []
        for own_name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and id(parameter) not in planned:
                name = names[module].names_of(own_name)[0] if module in names else own_name
                raise ParameterError(name, "is on the meta device and was not there when param_init_fn was called")
            row = rows.get(id(parameter))
            if row is not None and id(parameter) not in written:
                own.append((own_name, row))
                written.add(id(parameter))
        allocate_(module, place, dtype, recurse=False)
        here = [row.at(module.get_parameter(own_name)) for own_name, row in own]
        Plan(here, seed=seed, generator=None, backend=options.get("backend", "auto")).run_()
        restoration.restore_(place, [module])

    return initialise


def init_method(scheme: str | Scheme, *, generator: torch.Generator | None = None) -> Callable[[torch.Tensor], None]:
    """A function that initialises a tensor: Megatron's `init_method` and `output_layer_init_method`.

    Every call of the function draws a seed from `generator`, or from the default generator of the tensor's device.
    Megatron's tracker of random states governs the latter, and gives the ranks of tensor parallelism different seeds.
    The function knows no names. The fans are those of the whole tensor, and a rank gets its slice of a whole under its
    own seed. So the values depend on the sharding, as torch's do. `init_model_` after building has no such limit.

    Raises:
        TypeError, ValueError: the scheme is unknown. The function raises what `init_` raises.
    """
    made = as_scheme(scheme)

    def initialise(tensor: torch.Tensor) -> None:
        own = generator
        if own is None and tensor.device.type == "cuda":
            own = torch.cuda.default_generators[tensor.device.index or 0]
        if is_sharded(tensor):  # the ranks do not ask each other for every weight
            init_([tensor], made, names=[""], seed=draw_seed(own))
        else:
            init_([tensor], made, names=[""], generator=own)

    return initialise
