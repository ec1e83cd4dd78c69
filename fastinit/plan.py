"""The plan: what will be written where, and why, as plain data. Making one writes nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastinit import engine
from fastinit.checks import check_tensor
from fastinit.distributions import Constant, Distribution, check_range
from fastinit.fans import Fans, torch_fans
from fastinit.rules import KEEP, Rule, Selector, Treatment, as_rules, default_treatment, ruled_treatment
from fastinit.schemes import Scheme, as_scheme, describe
from fastinit.streams import canonical_name, check_seed
from fastinit.table import Target

Action = Literal["init", "keep", "tied", "buffer"]


class Row(NamedTuple):
    """One parameter or buffer of a plan.

    `name` is the canonical name, which together with the seed decides the random numbers. `zero_row` is an index along
    dimension 0 whose elements are zero, or None. `covered` is false where no rule decided.
    """

    name: str
    action: Action
    tensor: torch.Tensor
    scheme: Scheme | None
    fans: Fans | None
    distribution: Distribution | None
    reason: str
    covered: bool = True
    zero_row: int | None = None


def _target(row: Row, distribution: Distribution) -> Target:
    tensor = row.tensor
    return Target(row.name, tensor, tensor.shape, tensor.dtype, tensor.device, distribution, row.zero_row)


class Plan:
    """Rows for every parameter and buffer of a model (or tensors of a list), and how to run them.

    `print(plan)` shows a table, `plan.to_json()` the same as data, `plan.run_()` writes the values.
    """

    def __init__(
        self, rows: Sequence[Row], *, seed: int | None, generator: torch.Generator | None, backend: str
    ) -> None:
        check_seed(seed)
        if seed is not None and generator is not None:
            raise ValueError("seed, generator: expected one of them at the most, got both")
        self.rows = tuple(rows)
        self.seed = seed
        self._generator = generator
        self._program = engine.Program(
            [
                _target(row, row.distribution)
                for row in self.rows
                if row.action == "init" and row.distribution is not None
            ],
            backend,
        )

    def run_(self) -> None:
        """Write all values, in one pass. With a seed, running again gives the same bits.

        Raises:
            ValueError: a tensor lost its memory, or changed its shape, dtype or device, since the plan was made.
                Nothing is written then.
            RuntimeError: CUDA's error if the kernel cannot be launched.
        """
        self._program.run_(self.seed, self._generator)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Names of the parameters that no rule decided about."""
        return tuple(row.name for row in self.rows if not row.covered)

    def _records(self) -> Iterable[dict[str, Any]]:
        for row in self.rows:
            distribution = row.distribution
            yield {
                "name": row.name,
                "action": row.action,
                "shape": list(row.tensor.shape),
                "dtype": str(row.tensor.dtype).removeprefix("torch."),
                "device": str(row.tensor.device),
                "scheme": None if row.scheme is None else describe(row.scheme),
                "fan_in": None if row.fans is None else row.fans.fan_in,
                "fan_out": None if row.fans is None else row.fans.fan_out,
                "distribution": None if distribution is None else str(distribution),
                "std": None if distribution is None else distribution.std(),
                "reason": row.reason,
            }

    def to_json(self) -> str:
        """The rows as a JSON array of objects."""
        return json.dumps(list(self._records()), indent=1)

    def __str__(self) -> str:
        titles = ("name", "shape", "dtype", "device", "scheme", "fan in/out", "distribution", "std", "why")
        lines = [titles]
        for record in self._records():
            fans = "" if record["fan_in"] is None else f"{record['fan_in']}/{record['fan_out']}"
            lines.append(
                (
                    record["name"],
                    "x".join(map(str, record["shape"])) or "scalar",
                    record["dtype"],
                    record["device"],
                    record["scheme"] or record["action"],
                    fans,
                    record["distribution"] or "",
                    "" if record["std"] is None else f"{record['std']:.4g}",
                    record["reason"],
                )
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        table = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        written = [row.tensor for row in self.rows if row.action == "init"]
        elements = sum(tensor.numel() for tensor in written)
        size = sum(tensor.numel() * tensor.element_size() for tensor in written)
        kept = sum(row.action == "keep" for row in self.rows)
        summary = f"{len(written)} tensors, {elements:,} elements, {size / 2**20:,.1f} MiB to write; {kept} kept"
        return f"{table}\n{summary}"

    def __repr__(self) -> str:
        return f"<fastinit.Plan of {len(self.rows)} rows>"


class _Resolver:
    """From tensor and scheme to fans and distribution, remembering what equal shapes gave."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.Size, torch.dtype], tuple[Fans | None, Distribution]] = {}

    def __call__(self, name: str, tensor: torch.Tensor, scheme: Scheme) -> tuple[Fans | None, Distribution]:
        shape, dtype = tensor.shape, tensor.dtype
        key = (id(scheme), shape, dtype)
        known = self._known.get(key)
        if known is None:
            try:
                fans = torch_fans(shape) if scheme.needs_fans else None
                by_shape = getattr(scheme, "distribution_of", None)
                distribution = scheme.distribution(fans) if by_shape is None else by_shape(shape)
                check_range(distribution, dtype)
            except ValueError as error:
                lacks_fans = scheme.needs_fans and len(shape) < 2
                hint = "; give it a rule with a scheme without fans, such as 'normal'" if lacks_fans else ""
                raise ValueError(f"{name}: {describe(scheme)}: {error}{hint}") from error
            known = self._known[key] = (fans, distribution)
        return known


def _init_row(name: str, tensor: torch.Tensor, treatment: Treatment, resolve: _Resolver) -> Row:
    scheme = treatment.scheme
    assert scheme is not None
    check_tensor(tensor, name)
    if tensor.numel() == 0:
        return Row(name, "init", tensor, scheme, None, None, "empty")
    fans, distribution = resolve(name, tensor, scheme)
    zero_row = treatment.zero_row
    if zero_row is not None and isinstance(distribution, Constant) and distribution.value == 0.0:
        zero_row = None
    return Row(name, "init", tensor, scheme, fans, distribution, treatment.reason, True, zero_row)


def plan_tensors(
    tensors: Iterable[torch.Tensor],
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Plan:
    """A plan that gives every tensor of a list the same scheme. `names` default to positions: "0", "1", ..."""
    scheme = as_scheme(scheme)
    tensors = list(tensors)
    if names is None:
        names = [str(position) for position in range(len(tensors))]
    elif len(names) != len(tensors):
        raise ValueError(f"names: expected {len(tensors)}, one a tensor, got {len(names)}")
    treatment = Treatment(scheme, "listed")
    resolve = _Resolver()
    canonical = [canonical_name(name) for name in names]
    if len(set(canonical)) != len(canonical):
        twice = next(name for name in canonical if canonical.count(name) > 1)
        raise ValueError(f"names: {twice!r} stands twice; tensors of one name would get the same values")
    rows = [_init_row(name, tensor, treatment, resolve) for name, tensor in zip(canonical, tensors, strict=True)]
    return Plan(rows, seed=seed, generator=generator, backend=backend)


def plan(
    model: nn.Module,
    scheme: str | Scheme,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Plan:
    """What `init_model_` with the same arguments would write. Nothing is written, and no random number drawn.

    Every parameter and every buffer has a row with the reason for its treatment: the first rule that matches; else
    zeros for biases, ones for normalisation weights (zeros where the module computes 1 + weight), the scheme for
    everything with two dimensions or more, with the padding row of an embedding zero. A parameter that several modules
    share is initialised once, under the first of its names in the order of `model.named_parameters()`. Vectors that
    are neither bias nor normalisation weight, parametrised weights and all buffers are kept.

    Args:
        model: any module with its parameters allocated.
        scheme: a registered name or a scheme, for the matrices.
        rules: `Rule` objects or (selector, scheme) pairs, the first match wins.
        seed: 0 <= seed < 2**64: every value becomes a pure function of it, of the name and of the position.
            None: a seed is drawn from `generator`, or from torch's default CPU generator, whenever the plan runs.
        generator: where to draw the seed from, if not from the default.
        backend: "auto", "native" or "torch".
        strict: refuse parameters that nothing covers, and rules that match nothing.

    Raises:
        TypeError, ValueError: naming the parameter and what is wrong with it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    scheme = as_scheme(scheme)
    ordered_rules = as_rules(rules)
    unmatched = dict.fromkeys(range(len(ordered_rules)))
    resolve = _Resolver()
    rows: list[Row] = []
    names: dict[str, str] = {}  # canonical name -> name in the model
    first_name: dict[int, str] = {}  # id of a parameter -> canonical name
    for prefix, module in model.named_modules():
        parametrized = isinstance(module, parametrize.ParametrizationList)
        for own_name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full_name = f"{prefix}.{own_name}" if prefix else own_name
            name = canonical_name(full_name)
            if id(parameter) in first_name:
                reason = f"tied to {first_name[id(parameter)]}"
                rows.append(Row(name, "tied", parameter, None, None, None, reason))
                continue
            if names.setdefault(name, full_name) != full_name:
                raise ValueError(
                    f"{name}: two parameters have this canonical name, {names[name]} and {full_name}; rename a module"
                )
            first_name[id(parameter)] = name
            treatment = None
            for position, rule in enumerate(ordered_rules):
                if rule.matches(name, module, parameter):
                    unmatched.pop(position, None)
                    treatment = ruled_treatment(rule, module, None if rule.scheme is KEEP else as_scheme(rule.scheme))
                    break
            if treatment is None:
                if parametrized:
                    treatment = Treatment(None, "parametrised: its effective weight is computed from it", covered=False)
                else:
                    treatment = default_treatment(module, own_name, _dimensions(parameter), scheme)
            if treatment.scheme is None:
                rows.append(Row(name, "keep", parameter, None, None, None, treatment.reason, treatment.covered))
            else:
                rows.append(_init_row(name, parameter, treatment, resolve))
        for own_name, buffer in module._buffers.items():
            if buffer is not None:
                name = canonical_name(f"{prefix}.{own_name}" if prefix else own_name)
                rows.append(Row(name, "buffer", buffer, None, None, None, "buffer: kept"))
    _report_unmatched([ordered_rules[position] for position in unmatched], strict)
    made = Plan(rows, seed=seed, generator=generator, backend=backend)
    if strict and made.uncovered:
        raise ValueError("strict: no rule covers " + ", ".join(made.uncovered))
    return made


def _dimensions(parameter: nn.Parameter) -> int:
    # A lazy parameter has no shape; taken for a matrix it meets the check that says so.
    return 2 if torch.nn.parameter.is_lazy(parameter) else parameter.dim()


def _report_unmatched(rules: Sequence[Rule], strict: bool) -> None:
    if not rules:
        return
    message = "no parameter matches " + ", ".join(map(str, rules))
    if strict:
        raise ValueError(f"strict: {message}")
    warnings.warn(message, stacklevel=3)
