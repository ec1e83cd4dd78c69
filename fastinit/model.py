"""The main functions: they initialise every parameter of a model, or every tensor of a list, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fastinit.audit.signal import Comparison, trace_signal
from fastinit.capture import later
from fastinit.capture.guard import check_not_read
from fastinit.capture.tapes import drop_tapes
from fastinit.capture.twins import twin_tapes
from fastinit.distributed import agreement
from fastinit.distributed.flat import unflattened
from fastinit.distributed.wrapped import packed
from fastinit.errors import KeptWarning, UncoveredWarning, warn
from fastinit.meta.allocation import allocate_
from fastinit.meta.buffers import plan_restoration
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row
from fastinit.recipes import presets
from fastinit.recipes.files import Recipe, check_flag
from fastinit.recipes.presets import as_recipe, preset_names
from fastinit.rules.depths import check_layers
from fastinit.rules.finder import RuleFinder
from fastinit.rules.lists import fill_tensors, plan_tensors
from fastinit.rules.scripted import seen_through
from fastinit.rules.select import Rule, Selector, as_rules
from fastinit.rules.survey import Survey
from fastinit.run.at_exit import waited_for_at_exit
from fastinit.run.engine import check_modes
from fastinit.run.memory import FLOAT8_DTYPES, SAMPLED_DTYPES
from fastinit.run.names import Renamer, Renaming, named_modules, named_parameters, named_tensors
from fastinit.run.places import PlannedModules
from fastinit.run.progress import Progress, check_progress
from fastinit.schemes.base import Context, Scheme, as_scheme, as_written, describe
from fastinit.schemes.fans import FanConvention
from fastinit.schemes.named import Own, Uniform

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@waited_for_at_exit
def init_model_(
    model: ModuleT,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    fan: FanConvention | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
    names: Renaming | None = None,
    layers: int | Mapping[str, int] | None = None,
    progress: Progress = None,
) -> ModuleT:
    """Initialise every parameter of `model` in one pass, and return it.

    Linear maps get `scheme`, biases zeros, normalisation weights ones. What the model's author sets to a constant or
    computes stays so, and frozen parameters are kept. `rules` come before these defaults. A parameter that several
    modules share is written once. `fastinit.plan` takes the same arguments and shows the outcome without writing.

    The value of a weight depends only on the seed, its canonical name, its position and its distribution. It does not
    depend on the device, the number of threads, the memory format or the rest of the model.

    Args:
        model: any module whose parameters have memory. Parameters may be DTensors.
        scheme: the scheme for the matrices: a name ("xavier_uniform"), a scheme (`VarianceScaling(2.0)`), a preset
            ("gpt2") or a recipe (`load_recipe`).
        rules: pairs of a selector and a scheme, such as `("*.head.weight", "zeros")`. The first that matches wins. A
            module type takes the weights of its modules, and not their biases.
        fan: the convention for fan_in and fan_out. "torch" (the default) reads the shape, as torch.nn.init does; only
            stacks of maps, such as experts, have the fans of one map. "module" looks at what the module computes.
            "jax", "keras", `Fans(in, out)` and `FanAxes` are others.
        seed: an int in [0, 2**64). Every value is a pure function of it. None: a seed is drawn.
        generator: the generator that the seed is drawn from. None: torch's default CPU generator, which
            `torch.manual_seed` seeds.
        backend: "native" refuses tensors that the native code cannot fill where they are. "staged" accepts that the CPU
            fills memory of its own, which is copied. "torch" goes through torch.nn.init. "auto" takes the first of
            these that works, and a notice tells of the other two.
        strict: whether to refuse parameters that no rule and no default covers, and rules, or a recipe, that match
            nothing.
        names: the canonical names in the whole model, if `model` is a part of one: a pipeline stage, or the experts of
            a rank.
        layers: the number of layers of the whole model, for schemes that look at the depth.
        progress: None shows a bar on a terminal once the work has taken two seconds; True, False and a function are as
            for `Plan.run_`.

    Raises:
        ParameterError: a parameter cannot be initialised. The error is a ValueError and a TypeError, and names the
            parameter and what is wrong with it.
        TypeError, ValueError: an argument is wrong by itself. Nothing is written in any case.
        RuntimeError: the function of `progress` raised an exception; the work has stopped there, half done.

    >>> model = torch.nn.Linear(3, 2)
    >>> init_model_(model, "xavier_uniform", seed=0).bias.tolist()
    [0.0, 0.0]
    """
    _check_given(model, scheme, lambda made: f"fastinit.init_model_(model, {made})")
    made = plan(
        model,
        scheme,
        rules,
        fan=fan,
        seed=seed,
        generator=generator,
        backend=backend,
        strict=strict,
        names=names,
        layers=layers,
    )
    later.run_(made, progress=progress)
    return model


@waited_for_at_exit
def plan(
    model: nn.Module,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    fan: FanConvention | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
    names: Renaming | None = None,
    layers: int | Mapping[str, int] | None = None,
) -> Plan:
    """The plan of `init_model_` with the same arguments. Nothing is written, and no random number is drawn.

    Every parameter and every buffer has a row with the reason for its treatment. The first rule that matches decides.
    Where none matches:

    - Linear maps and embeddings get the scheme. The padding row of an embedding is zero.
    - Biases get zeros. Normalisation weights get ones, or zeros where the module computes 1 + weight.
    - Adapters, state spaces and slopes get their published values.
    - Constants, patterns and tables that the author's own code gives stay what they are, and so do its draws for all
      other parameters. Where no such code can be read, these are kept, and a warning names them.
    - Frozen and loaded (`_is_hf_initialized`) parameters are kept, and a warning counts them. So are all buffers.

    docs/ROLES.md has the whole table. A parameter that several modules share is initialised once, under the first of
    its names in the order of `model.named_parameters()`. Parametrised weights are set through `right_inverse`, so that
    the effective weight follows the scheme. DTensors are planned by their global shape, and this rank writes its part
    of them. Parameters on the meta device can be planned; `materialize_` writes them.

    Args:
        model: any module. Parameters may be on the meta device.
        scheme: the scheme for the matrices: a registered name, a scheme, a preset's name or a recipe.
        rules: `Rule` objects or (selector, scheme) pairs. The first match wins. They come before a recipe's rules.
        fan: the convention for fans, unless a rule has its own: "torch" (as torch.nn.init), "module" (what the module
            computes), "jax", "keras", `Fans` or `FanAxes`. None: the recipe's convention; for a scheme alone it is
            "torch", and a `FanWarning` names the parameters whose std "module" would change by a factor over 1.5.
        seed: an int in [0, 2**64). Every value is a pure function of the seed, the name, the position and the
            distribution. None: every run draws a seed from `generator`, or from torch's default CPU generator. The
            ranks that share DTensors, or hold replicas under a wrapper, then meet and take one of their seeds. All of
            them must run the plan (docs/DISTRIBUTED.md).
        generator: the generator that the seed is drawn from, if not the default one.
        backend: "auto", "native", "staged" or "torch".
        strict: whether to refuse parameters that nothing covers, and rules of `rules` that match nothing. The ranks of
            every mesh also compare their plans for its DTensors, and their seeds. All ranks must take part in this
            exchange. Without a given seed, every run also compares the seeds that the ranks took.
        names: the names of parameters in the whole model, if `model` is a part of one: a pipeline stage, or the experts
            of a rank. Either a mapping of names or their beginnings ({"layers.0": "layers.24"}), or a function from
            canonical name to canonical name. Rules see the names of the whole. Parameters with one name in two stages
            (tied ones) get the same values.
        layers: the number of layers in the stacks of the whole model, for schemes that look at the depth: an int, or an
            int for every prefix ({"encoder.block.": 12}). Such schemes need it together with `names`.

    Raises:
        ParameterError: a parameter cannot be initialised. The error is a ValueError and a TypeError, and names the
            parameter and what is wrong with it.
        TypeError, ValueError: an argument is wrong by itself. Under `strict`, an error on one rank of a mesh is raised
            on all its ranks.

    >>> print(plan(torch.nn.Linear(3, 3), "xavier_uniform"))
    name    kind    shape  dtype    device  scheme          fan in/out  distribution  std     why
    weight  Linear  3x3    float32  cpu     xavier_uniform  3/3         U[-1, 1]      0.5774  linear map of Linear
    bias    Linear  3      float32  cpu     zeros                       0             0       bias
    2 tensors, 12 elements, 0.0 MiB to write
    """
    return _planned(model, scheme, rules, fan, seed, generator, backend, strict, names, layers)


def _planned(
    model: nn.Module,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None,
    fan: FanConvention | None,
    seed: int | None,
    generator: torch.Generator | None,
    backend: str,
    strict: bool,
    names: Renaming | None,
    layers: int | Mapping[str, int] | None,
    unwritten: Collection[str] = (),
) -> Plan:
    """`plan`, with the names of parameters whose memory has just been made: they have no values to keep."""
    check_not_read()
    _check_given(model, scheme, lambda made: f"fastinit.plan(model, {made})")
    check_flag("strict", strict)
    check_layers(layers)
    modules = named_modules(model)
    if (plain := seen_through(model, [each.module for each in modules])) is not model:
        model, modules = plain, named_modules(plain)
    with unflattened(model, [each.module for each in modules]):
        survey = Survey(model, Renamer(names), layers, unwritten, modules=modules)
        made = partial(_plan, survey, scheme, rules, fan, seed, generator, backend, strict, names is not None)
        return _agreed(made, survey.meshes()) if strict else made()


def _plan(
    survey: Survey,
    given: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None,
    fan: FanConvention | None,
    seed: int | None,
    generator: torch.Generator | None,
    backend: str,
    strict: bool,
    of_part: bool,
) -> Plan:
    recipe = as_recipe(given, survey.model)
    scheme = as_scheme(recipe.scheme)
    if isinstance(scheme, Own):  # code that is read on a copy would write nothing, and the plan nothing either
        check_modes()
    own_rules = as_rules(rules)
    # Whoever published a recipe chose its fans. With a scheme alone, nobody did.
    if fan is None and (isinstance(given, Recipe) or (isinstance(given, str) and given in preset_names())):
        fan = recipe.fan
    rows = survey.rows(scheme, fan, RuleFinder([*own_rules, *as_rules(recipe.rules)]))
    survey.report_unmatched(own_rules, strict)
    decided = any(at >= len(own_rules) for at in (*survey.matched, *survey.matched_ties))
    if not of_part:  # a pipeline stage may lack what all rules are for
        _report_unmatched(recipe, decided, survey.model, strict)
    if isinstance(given, str) and given in _OF_ONE_STD and any(row.scheme is scheme for row in rows):
        _warn_of_one_std(given, scheme)
    groups = survey.wrapper_groups()
    made = Plan(
        rows,
        seed=seed,
        generator=generator,
        backend=backend,
        seed_groups=groups,
        strict=strict,
        guessed=survey.guessed,
        modules=PlannedModules(survey.modules),
    )
    _report_uncovered(made, strict, survey.failures())
    _report_kept(made, survey.kept)
    return made


def _check_given(model: object, scheme: object, line: Callable[[str], str]) -> None:
    """Raise TypeError unless a model and a scheme were given, with the line to write. `line` makes it for a scheme."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        instead = _instead_of(model, scheme)
        raise TypeError(f"model: expected a torch.nn.Module, got {got}" + (f"; write {instead}" if instead else ""))
    maker: Any = scheme
    if callable(scheme) and getattr(scheme, "__module__", "").startswith("fastinit.recipes."):
        room = "presets." if maker.__module__.startswith(presets.__name__) else ""
        raise TypeError(
            f"scheme: expected a name, a scheme or a recipe, got the function {maker.__name__}; write "
            + line(f"fastinit.{room}{maker.__name__}(model)")
        )
    if not isinstance(scheme, (str, Recipe)):
        as_scheme(maker, line)


def _instead_of(model: Any, scheme: object) -> str | None:
    """The line to write, if what was given as a model shows what was meant."""
    written = as_written(scheme)
    if isinstance(scheme, nn.Module):
        return f"fastinit.init_model_(model, {as_written(model)})"
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"fastinit.init_model_({model.__name__}(...), {written})"
    if isinstance(model, torch.Tensor):
        return f"fastinit.init_([tensor], {written})"
    if isinstance(model, Mapping):
        return f"fastinit.init_(tensors.values(), {written}, names=list(tensors))"
    if isinstance(model, Iterable) and not isinstance(model, str):
        return f"fastinit.init_(tensors, {written}), or fastinit.init_model_(model, {written}) for all of a model"
    return None


# What these names are without arguments, and the same in writing. torch's defaults are made to fill one tensor.
_OF_ONE_STD = {
    "normal": ("N(0, 1)", "fastinit.Normal(std=1.0)", "fastinit.Normal(std=0.02)"),
    "uniform": ("U[0, 1]", "fastinit.Uniform(0.0, 1.0)", "fastinit.Uniform(-0.05, 0.05)"),
    "trunc_normal": (
        "N(0, 1) in [-2, 2]",
        "fastinit.TruncNormal(std=1.0)",
        "fastinit.TruncNormal(std=0.02, bounds=(-0.04, 0.04))",
    ),
}


warned_of_one_std: set[str] = set()  # names of schemes: each is told once in a process


def _warn_of_one_std(name: str, scheme: Scheme) -> None:
    if name in warned_of_one_std:
        return
    warned_of_one_std.add(name)
    what, same, smaller = _OF_ONE_STD[name]
    by_fans = "xavier_uniform" if name == "uniform" else "xavier_normal"
    std = scheme.distribution(Context(())).std()
    warn(
        f'scheme: "{name}" without arguments gives every matrix {what}, std {std:.3g} whatever its size; write '
        f'{smaller}, or "{by_fans}", which looks at the fans, or {same} if this is meant'
    )


def _report_unmatched(recipe: Recipe, decided: bool, model: nn.Module, strict: bool) -> None:
    """Warn of a recipe of which no rule matches; under `strict` raise ValueError. `decided`: one of them has decided.

    A recipe serves many models, and some of its rules may match nothing in one of them. If none does, the recipe is
    for other models, or for other names.
    """
    rules = as_rules(recipe.rules)
    if decided or not rules or RuleFinder(rules).finds_any(model):
        return
    of = "the recipe" if recipe.name is None else f"the recipe {recipe.name!r}"
    message = f"no parameter matches any rule of {of}, which is for other models"
    if strict:
        raise ValueError(f"strict: {message}")
    warn(message)


def _report_uncovered(made: Plan, strict: bool, failures: Sequence[str]) -> None:
    why = f" ({'; '.join(failures[:_SHOWN])})" if failures else ""
    if strict and made.uncovered:
        raise ValueError(f"strict: no rule covers {', '.join(made.uncovered)}{why}")
    # Parameters on meta have no values to keep, and materialize_ refuses them.
    names = [row.name for row in made.rows if not row.covered and row.device.type != "meta"]
    if not names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    warn(f"no rule covers {shown}{why}: kept as they are; give them a rule, or KEEP", UncoveredWarning)


def _report_kept(made: Plan, kept: Mapping[str, Sequence[str]]) -> None:
    """Warn of frozen, of loaded and of packed parameters, which no rule has reached."""
    what = {
        "frozen": "frozen parameters (requires_grad=False)",
        "loaded": "loaded weights (_is_hf_initialized)",
        "packed": "packed or quantised tensors",
    }
    for role, names in kept.items():
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        nothing = "; nothing is left to write" if made.numel == 0 else ""
        warn(f"{len(names)} {what[role]} are kept, for no rule reaches them: {shown}{nothing}", KeptWarning)


_SHOWN = 6


def _agreed(planned: Callable[[], Plan], meshes: Sequence[DeviceMesh]) -> Plan:
    """The plan, after the ranks of all meshes have compared their plans."""
    if not meshes:
        return planned()
    try:
        made = planned()
    except Exception as error:
        agreement.check_agreement([(mesh, []) for mesh in meshes], str(error))
        raise
    agreement.check_agreement([(mesh, made.entries(mesh)) for mesh in meshes], None)
    return made


@waited_for_at_exit
def materialize_(
    model: ModuleT,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    device: torch.device | str | int,
    dtype: torch.dtype | None = None,
    buffers: Sequence[tuple[Selector, Callable[[Any], Any]]] | None = None,
    build: Callable[[], nn.Module] | None = None,
    fan: FanConvention | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
    names: Renaming | None = None,
    layers: int | Mapping[str, int] | None = None,
    progress: Progress = None,
) -> ModuleT:
    """Give a model on the meta device its memory, its buffers and its initial values, and return it.

    The model may be sharded (`fully_shard`, `parallelize_module`) or split into pipeline stages before or after. Every
    rank allocates and writes its own part. Parameters that are one object stay one. New memory is not zeroed first.
    Buffers get the values that they would have had without the meta device; buffers that have memory are moved.
    Parameters that have memory stay where they are, and are initialised like the others.

    Args:
        model: any module.
        device: the device for parameters and buffers on meta. Parameters that FSDP2 offloads go to the CPU.
        dtype: the dtype for floating-point parameters on meta. None: each keeps its own.
        buffers: (selector, function of the module) pairs for buffers that only the user can compute. The function
            assigns or fills the selected buffers: `("*.rope.*", lambda module: module.make_tables())`.
        build: a function that builds the model again, `lambda: Model(config)`. It is run under `deferred`, without
            memory. What it does decides the buffers, and under the scheme "own" the parameters. Names and shapes must
            be those of `model`; if that is a part, of which `names` tells, the function builds the whole. A model that
            was itself built under `deferred` needs no such function.
        scheme, rules, fan, seed, generator, backend, strict, names, layers: as for `plan`.
        progress: as for `init_model_`.

    Raises:
        TypeError, ValueError: `plan` raises it, a parameter would be left without values, nobody knows how to compute
            a buffer, or `build` makes another model. Nothing is changed then. If values do not fit a new `dtype`, the
            error comes after the memory was allocated, with nothing written to it.

    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(3, 2)
    >>> materialize_(model, "xavier_uniform", device="cpu", seed=0).bias.tolist()
    [0.0, 0.0]
    """
    _check_given(model, scheme, lambda made: f"fastinit.materialize_(model, {made}, device={str(device)!r})")
    check_not_read()
    check_modes()
    check_progress(progress)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    device = torch.device(device)
    if device.type == "meta":
        raise ValueError("device: expected one with memory, got meta")
    planned = partial(_planned, model, scheme, rules, fan, seed, generator, backend)
    with nullcontext() if build is None else twin_tapes(model, build, Renamer(names), seed or 0):
        check_all_written(planned(strict, names, layers))
        unwritten = {name for name, _, each in named_parameters(model, ties=True) if each.device.type == "meta"}
        restoration = plan_restoration(model, buffers, seed=seed or 0, strict=strict)
        allocate_(model, device, dtype)
        restoration.restore_(device)
        with warnings.catch_warnings():  # the first plan gave these warnings
            warnings.simplefilter("ignore")
            made = planned(False, names, layers, unwritten)
        made.run_(progress=progress)
        restoration.settle_({id(row.tensor) for row in made.rows if isinstance(row.scheme, Own)})
        drop_tapes(model)
    return model


def compare(
    model_fn: Callable[[], nn.Module],
    schemes: Iterable[str | Scheme | Recipe] | Mapping[str, str | Scheme | Recipe],
    batch: Any,
    loss: Callable[[Any], torch.Tensor] | None = None,
    *,
    layers: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Trace the signal through one model under several schemes, with `fastinit.trace_signal`.

    Args:
        model_fn: builds the model, once for every scheme.
        schemes: what `init_model_` takes; a mapping gives them names for the table and the plot.
        batch, loss, layers: as for `trace_signal`.
        seed: of all schemes.

    Raises:
        TypeError, ValueError: as `init_model_` and `trace_signal`; or two schemes have one name.

    >>> def network():
    ...     return torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(30)])
    >>> found = compare(network, ["zeros", "orthogonal"], torch.eye(64))
    >>> {name: trace.activations.verdict for name, trace in found.traces.items()}
    {'zeros': 'no signal', 'orthogonal': 'level'}
    """
    if isinstance(schemes, Mapping):
        named = list(schemes.items())
    else:
        named = [(_scheme_in_words(each), each) for each in schemes]
    if len(dict(named)) < len(named):
        raise ValueError("schemes: two of them have one name; give a mapping of names to schemes")
    return Comparison(
        {
            name: trace_signal(init_model_(model_fn(), scheme, seed=seed), batch, loss, layers=layers, name=name)
            for name, scheme in named
        }
    )


def _scheme_in_words(given: str | Scheme | Recipe) -> str:
    if isinstance(given, Recipe):
        return given.name or "recipe"
    return given if isinstance(given, str) else describe(given)


def check_all_written(made: Plan) -> None:
    """Raise ValueError if the plan keeps a parameter on meta, which has no values to keep."""
    left = [row for row in made.rows if row.action == "keep" and row.device.type == "meta"]
    if left:
        raise ValueError(
            "parameters on the meta device that nothing would write to: "
            + ", ".join(f"{row.name} ({row.reason})" for row in left)
            + "; give them a rule"
        )


@waited_for_at_exit
def init_(
    tensors: Iterable[torch.Tensor],
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None = None,
    fan: FanConvention = "torch",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> None:
    """Initialise a list of tensors with one scheme, in one pass.

    The seed and a tensor's name decide which random numbers it gets. The default `names` are positions ("0", "1", ...).

    Raises:
        TypeError, ValueError: a tensor cannot be initialised. The message names it and what is wrong. Nothing is
            written then.

    >>> weight = torch.empty(2, 3)
    >>> init_([weight], "kaiming_normal", seed=0)
    """
    if backend in ("auto", "native") and fill_tensors(
        tensors, scheme, names=names, fan=fan, seed=seed, generator=generator
    ):
        return
    later.run_(plan_tensors(tensors, scheme, names=names, fan=fan, seed=seed, generator=generator, backend=backend))


def dummy_(model: ModuleT, low: float = -1e-3, high: float = 1e-3, seed: int = 0) -> ModuleT:
    """U[low, high] in every floating-point parameter and buffer of a model, in one pass, and return it: weights to
    measure with, before there are any.

    8-bit floats are filled where they are, without a wider copy. Where both bounds are smaller than the least normal
    number of such a dtype (2^-6 in float8_e4m3fn, whose only number below 1e-3 is 0), they are stretched until the
    farther one is that number. The names are those of `init_model_`, so that shards hold parts of the whole.

    Args:
        model: any module whose parameters and buffers have memory. Other tensors of it stay as they are: integers,
            packed ones, complex ones.
        low, high: the bounds, low <= high.
        seed: an int in [0, 2**64).

    Raises:
        ParameterError: a tensor cannot be written, and which. Nothing is written then.
        TypeError, ValueError: an argument is wrong by itself.

    Warns:
        KeptWarning: tensors in floating-point formats without a sign or of 4 bits, and packed ones, are kept.

    >>> model = torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)
    >>> bool(dummy_(model).weight.float().abs().max() <= 2**-6)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    scheme = Uniform(low, high)
    rows: list[Row] = []
    kept: list[str] = []
    by_scheme: dict[Uniform, dict[str, torch.Tensor]] = {}
    for name, tensor in named_tensors(model).items():
        if (why := packed(tensor)) is not None:
            kept.append(f"{name} ({why})")
        elif tensor.dtype in SAMPLED_DTYPES:
            by_scheme.setdefault(_stretched(scheme, tensor.dtype), {})[name] = tensor
        elif tensor.is_floating_point():
            kept.append(f"{name} ({tensor.dtype})")
    for each, named in by_scheme.items():
        rows += plan_tensors(named.values(), each, names=list(named), seed=seed).rows
    Plan(rows, seed=seed, generator=None, backend="auto").run_()
    if kept:
        shown = ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")
        warn(f"dummy_ keeps what it cannot draw: {shown}", KeptWarning)
    return model


def _stretched(scheme: Uniform, dtype: torch.dtype) -> Uniform:
    """The scheme with bounds that reach the least normal number of an 8-bit float."""
    if dtype not in FLOAT8_DTYPES:
        return scheme
    reach = max(abs(scheme.low), abs(scheme.high))
    factor = torch.finfo(dtype).smallest_normal / reach if reach > 0.0 else 1.0
    return Uniform(scheme.low * factor, scheme.high * factor) if factor > 1.0 else scheme
