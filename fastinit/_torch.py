"""Torch's private names, and what happens where torch lacks one; torch's own initialisers, bound once.

Every other file asks here. This file imports nothing of fastinit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import distributed, nn
from torch.nn.utils import parametrize

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _own(name: str) -> Callable[..., Any]:
    """torch.nn.init's own function `name`, as it is while fastinit is imported: later, users may put ours in its place.

    The form that is bound never asks a TorchFunctionMode, which would look the name up in torch.nn.init again. Where
    torch lacks that form, the public one serves.
    """
    function: Callable[..., Any] = getattr(nn.init, f"_no_grad_{name}", None) or getattr(nn.init, name)
    return function


fill_: Callable[..., Any] = getattr(nn.init, "_no_grad_fill_", nn.init.constant_)
uniform_ = _own("uniform_")
normal_ = _own("normal_")
trunc_normal_ = _own("trunc_normal_")
calculate_gain: Callable[..., float] = nn.init.calculate_gain


def classes(module: str, name: str, instead: tuple[type[Any], ...] = ()) -> tuple[type[Any], ...]:
    """A private class of torch, for isinstance. Where torch lacks it: `instead`, the public classes in its place."""
    found = getattr(importlib.import_module(module), name, None)
    return instead if found is None else (found,)


# Nested lists, tuples and dicts of arguments: their leaves, and the same nest with other leaves. Without the module,
# nothing can be recorded (capture/), and the import of fastinit fails.
_pytree: Any = importlib.import_module("torch.utils._pytree")
_LEAVES = frozenset({torch.Tensor, nn.Parameter, bool, int, float, str, type(None), torch.dtype, torch.device})


def tree_leaves(tree: Any) -> list[Any]:
    """What is in tuples, lists, dictionaries and whatever else torch knows as a tree."""
    kind = type(tree)
    if kind in _LEAVES:  # torch's own way takes long
        return [tree]
    if kind is tuple or kind is list:
        return [leaf for each in tree for leaf in tree_leaves(each)]
    leaves: list[Any] = _pytree.tree_flatten(tree)[0]
    return leaves


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree like this one, with what a function gives for each leaf."""
    kind = type(tree)
    if kind in _LEAVES:
        return function(tree)
    if kind is tuple or kind is list:
        return kind([tree_map(function, each) for each in tree])
    if kind is dict:
        return {key: tree_map(function, each) for key, each in tree.items()}
    return _pytree.tree_map(function, tree)


# What `torch.no_grad` calls to switch gradients off and on. Without it: nothing, and the call counts as any other.
SET_GRAD_ENABLED: Any = getattr(torch._C, "_set_grad_enabled", None)

# The function of torch.nn.init in which truncated normal values are drawn. The public one calls it by this name.
TRUNC_NORMAL = "_no_grad_trunc_normal_" if hasattr(nn.init, "_no_grad_trunc_normal_") else "trunc_normal_"

# The functions of torch.nn.init in which it writes constants, without asking a mode before it switches gradients off.
ZEROS = "_no_grad_zero_" if hasattr(nn.init, "_no_grad_zero_") else "zeros_"
CONSTANTS = "_no_grad_fill_" if hasattr(nn.init, "_no_grad_fill_") else "constant_"

FANS = "_calculate_fan_in_and_fan_out"  # the function of torch.nn.init by which its others find the fans


def modes_off() -> Any:
    """A context in which no TorchFunctionMode and no tensor subclass is asked. Without it: one that does nothing."""
    return getattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)()


def factories() -> list[Callable[..., Any]]:
    """The functions of torch that make tensors on a device of their choice. Without torch's list: the usual ones."""
    listed = getattr(importlib.import_module("torch.utils._device"), "_device_constructors", None)
    if listed is None:
        names = "empty zeros ones full rand randn randint randperm arange linspace logspace eye tensor"
        return [getattr(torch, name) for name in names.split()]
    return list(listed())


def list_weights(network: nn.RNNBase) -> None:
    """Have a recurrent network list the parameters that it has now."""
    network._flat_weights_names, network._all_weights = list(network._parameters), [list(network._parameters)]
    network._init_flat_weights()


def new_storage(nbytes: int) -> torch.UntypedStorage:
    """Memory on the CPU, as it comes."""
    make: Any = torch.UntypedStorage
    storage: torch.UntypedStorage = make(nbytes, device="cpu")
    return storage


_stack_size: Any = getattr(torch._C, "_len_torch_function_stack", None)
_stack_at: Any = getattr(torch._C, "_get_function_stack_at", None)
_pop_mode: Any = getattr(torch._C, "_pop_torch_function_stack", None)
_push_mode: Any = getattr(torch._C, "_push_on_torch_function_stack", None)


def has_function_modes() -> bool:
    """Whether any TorchFunctionMode is on. Without the means to know: yes."""
    return _stack_size is None or bool(_stack_size())


def is_on_meta(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the meta device, whatever a TorchFunctionMode answers: `deferred()` says no."""
    if not has_function_modes():
        return tensor.is_meta
    with modes_off():
        return tensor.is_meta


def outside_of(mode: type[Any], function: Callable[[Any], _R]) -> _R | None:
    """Run a function of the innermost TorchFunctionMode, without the mode, if it is of this type; else give None.

    Without the means: always None, and the mode is asked in torch's own, slower way.
    """
    if _push_mode is None or not _stack_size():
        return None
    top = _stack_at(_stack_size() - 1)
    if type(top) is not mode:
        return None
    _pop_mode()
    try:
        return function(top)
    finally:
        _push_mode(top)


@functools.cache
def _storage_reference() -> Any:
    return importlib.import_module("torch.multiprocessing.reductions").StorageWeakRef


def storage_reference(storage: torch.UntypedStorage) -> Any:
    """A reference to a storage that does not keep its memory. It has `cdata` and `expired()`."""
    return _storage_reference()(storage)


def storage_of(reference: Any) -> torch.UntypedStorage:
    """The storage of a reference that has not expired."""
    make: Any = torch.UntypedStorage._new_with_weak_ptr
    storage: torch.UntypedStorage = make(reference.cdata)
    return storage


# Convolutions, transposed ones too. Without the base class, users' classes that are derived from it alone are no longer
# known as convolutions.
CONVOLUTIONS = classes(
    "torch.nn.modules.conv",
    "_ConvNd",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)

# Normalisations with running statistics. Without the base class, users' classes that are derived from it alone are
# known by their names only.
BATCH_NORMS = classes(
    "torch.nn.modules.batchnorm",
    "_NormBase",
    (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
)

# What torch.nn.utils.parametrizations.spectral_norm and .orthogonal put on a weight. Without these classes, they are
# parametrizations like others: the estimate of a norm begins with the forward passes, and an orthogonal weight on the
# meta device cannot be computed.
SPECTRAL_NORMS = classes("torch.nn.utils.parametrizations", "_SpectralNorm")
ORTHOGONALS = classes("torch.nn.utils.parametrizations", "_Orthogonal")


def forget_cached(module: nn.Module, own_name: str) -> None:
    """Drop a parametrised weight from the cache of parametrize.cached(). Without such a cache: nothing to drop."""
    cache: dict[Any, Any] = getattr(parametrize, "_cache", {})
    cache.pop((id(module), own_name), None)


def wraps_others(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a wrapper around others, such as a DTensor. Without torch's test: by the protocol's
    methods."""
    module = importlib.import_module("torch.utils._python_dispatch")
    test = getattr(module, "is_traceable_wrapper_subclass", None)
    return hasattr(tensor, "__tensor_flatten__") if test is None else bool(test(tensor))


def wrapped_tensors(wrapper: torch.Tensor) -> list[torch.Tensor]:
    """The tensors inside a wrapper; for a tensor that a function transform handed out, the one tensor behind it."""
    if in_transform(wrapper):
        unwrap = getattr(getattr(torch._C, "_functorch", None), "get_unwrapped", None)
        return [] if unwrap is None else [unwrap(wrapper)]
    names, _ = wrapper.__tensor_flatten__()  # type: ignore[attr-defined]
    return [each for name in names if isinstance(each := getattr(wrapper, name), torch.Tensor)]


def storage_key(tensor: torch.Tensor) -> int:
    """Equal for tensors that share a storage, on the meta device too, where addresses are 0. Without it, every tensor
    on the meta device counts as having a storage of its own, as do those that torch.func's transforms hand out."""
    try:
        key: int = getattr(tensor.untyped_storage(), "_cdata", id(tensor))
    except NotImplementedError:
        return id(tensor)
    return key


def take_memory(tensor: torch.Tensor, fresh: torch.Tensor) -> None:
    """Let `tensor` have the memory of `fresh`, which is of its type, and stay the same object with all that it has.

    `torch.utils.swap_tensors` does this too, but refuses tensors that something refers to weakly, for it also exchanges
    their attributes. Without the private function, it serves.

    Raises:
        RuntimeError: something else in torch has the memory of `tensor`, such as an autograd graph.
    """
    swap: Any = getattr(torch._C, "_swap_tensor_impl", None)
    plain = swap is not None and type(tensor) is type(fresh) and type(tensor) in (torch.Tensor, nn.Parameter)
    count: Any = getattr(tensor, "_use_count", None)
    if plain and count is not None and count() == 1:
        swap(tensor, fresh)
    else:
        torch.utils.swap_tensors(tensor, fresh)  # type: ignore[no-untyped-call]


def typed_like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """`data` as a leaf of the type of `tensor` (a Parameter, say), with its `requires_grad`."""
    make = getattr(torch.Tensor, "_make_subclass", None)
    if make is None:
        return data.as_subclass(type(tensor)).requires_grad_(tensor.requires_grad)
    made: torch.Tensor = make(type(tensor), data, tensor.requires_grad)
    return made


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def gradient_hooks(tensor: torch.Tensor) -> dict[str, Any]:
    """The hooks that hang on a tensor's gradient. Where torch keeps them elsewhere: none, and they are lost."""
    return {name: hooks for name in _HOOKS if (hooks := getattr(tensor, name, None)) is not None}


def set_gradient_hooks(tensor: torch.Tensor, hooks: dict[str, Any]) -> None:
    """Give `tensor` the hooks that `gradient_hooks` found. The dictionaries stay the same objects, so that handles
    given out earlier can still remove their hooks."""
    for name, each in hooks.items():
        setattr(tensor, name, each)


def fsdp_parameters(module: nn.Module) -> list[Any]:
    """What FSDP2 keeps for each parameter of its module; of a module that it does not manage, nothing.

    Where FSDP2 has no such state: nothing, and its own first forward pass looks at the shards.
    """
    state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before torch had several groups a module
        groups = [group for group in [getattr(state, "_fsdp_param_group", None)] if group is not None]
    return [each for group in groups for each in group.fsdp_params]


class FlatPart(NamedTuple):
    """One of the parameters that FSDP1 has made one flat parameter of, and what this rank's shard has of it.

    places: the modules and names under which it belongs, the first one first.
    parameter: the parameter itself, if FSDP1 keeps it (use_orig_params).
    begin, numel: the range of its elements in the shard, in row-major order. offset: where that lies in the shard.
    is_plain: whether its elements lie in row-major order, and are its own.
    """

    places: list[tuple[nn.Module, str]]
    parameter: nn.Parameter | None
    shape: torch.Size
    begin: int
    numel: int
    offset: int
    is_plain: bool


def flat_parts(wrapper: Any) -> list[FlatPart] | None:
    """The parameters in the flat parameter of a FullyShardedDataParallel; none if it has no flat parameter of its own.

    Where FSDP1 keeps no such account: None, and its shards are refused.
    """
    handle = getattr(wrapper, "_handle", None)
    if handle is None:
        return [] if hasattr(wrapper, "_handle") else None
    flat = handle.flat_param
    try:
        places = [[(info.module, info.param_name)] for info in flat._param_infos]
        firsts = {(id(module), name): each for each in places for module, name in each}
        for shared in flat._shared_param_infos:
            firsts[id(shared.prim_module), shared.prim_param_name].append((shared.module, shared.param_name))
        own = flat._params or [None] * len(places)
        columns = (places, own, flat._shapes, flat._shard_param_infos, flat._contiguities, flat._param_extensions)
        return [
            FlatPart(
                each,
                parameter,
                shape,
                info.intra_param_start_idx or 0,
                info.numel_in_shard or 0,
                info.offset_in_shard or 0,
                bool(contiguous) and extension is None,
            )
            for each, parameter, shape, info, contiguous, extension in zip(*columns, strict=True)
        ]
    except (AttributeError, KeyError, ValueError):
        return None


def flat_memory(wrapper: Any) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The flat parameter of a FullyShardedDataParallel, this rank's shard of it, and whether it is not gathered now."""
    flat: Any = wrapper._handle.flat_param
    local = getattr(flat, "_local_shard", flat).detach()
    return flat, local, tuple(flat.shape) == tuple(flat._sharded_size) == tuple(local.shape)


def flat_group(wrapper: Any) -> tuple[Any, bool]:
    """The process group over which a FullyShardedDataParallel shards, and whether it shards at all."""
    handle: Any = wrapper._handle
    return handle.process_group, bool(handle.uses_sharded_strategy)


def between_nodes(wrapper: Any) -> Any:
    """The process group over which FSDP1's HYBRID_SHARD replicates. Without the attribute, or elsewhere: None, and the
    replicas of other nodes agree on no seed."""
    return getattr(wrapper, "_inter_node_pg", None)


def replicas_group(module: Any) -> Any:
    """The process group over which a wrapper replicates. A module under the composable `replicate` has that of its
    DistributedDataParallel, which the first forward call makes; before that call, the one that `replicate` was given.
    Without the attributes: None, which stands for all ranks."""
    if (group := getattr(module, "process_group", None)) is not None:
        return group
    replicate = getattr(sys.modules.get(type(module).__bases__[0].__module__), "replicate", None)
    try:
        state: Any = replicate.state(module)  # type: ignore[union-attr]
        if (wrapper := getattr(state, "_ddp", None)) is not None:
            return wrapper.process_group
        mesh = state._init_kwargs.get("device_mesh")
        return state._init_kwargs.get("process_group") if mesh is None else mesh.get_group()
    except AttributeError:
        return None


def default_store() -> Any:
    """The store of the default process group, for groups that offer none themselves: threads as ranks. Without it:
    None."""
    private = getattr(distributed.distributed_c10d, "_get_default_store", None)
    return None if private is None else private()


def local_part(tensor: Any) -> torch.Tensor:
    """This rank's part of a DTensor, as the same object at every call. Without the attribute: a view of it."""
    local: torch.Tensor | None = getattr(tensor, "_local_tensor", None)
    if local is None:
        with torch.no_grad():
            local = tensor.to_local()
    return local


def group_devices(group: Any) -> list[torch.device]:
    """The devices whose tensors a process group can reduce. Without the attribute: by the name of its backend."""
    kinds: list[torch.device] | None = getattr(group, "_device_types", None)
    if kinds is None:
        on_cpu = distributed.get_backend(group) in ("gloo", "mpi")
        kinds = [torch.device("cpu" if on_cpu else torch.accelerator.current_accelerator() or "cuda")]
    return kinds


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written to. Without the count, and in inference mode: 0, as if nobody had."""
    try:
        return int(getattr(tensor, "_version", 0))
    except RuntimeError:
        return 0


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of FakeTensorMode: a shape without memory. Without the class: none is, and such a tensor
    is refused as a wrapper."""
    module = sys.modules.get("torch._subclasses.fake_tensor")  # not loaded: there is none
    return isinstance(tensor, getattr(module, "FakeTensor", ()))


def in_fake_mode() -> bool:
    """Whether FakeTensorMode is on, in which new tensors have no memory. Without the means to know: no."""
    mode = getattr(torch._C, "_get_dispatch_mode", None)
    key = getattr(getattr(torch._C, "_TorchDispatchModeKey", None), "FAKE", None)
    return mode is not None and key is not None and mode(key) is not None


# Whether torch.jit.trace is at work.
is_jit_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: False)


def is_traced() -> bool:
    """Whether calls of torch's operators are being put into a graph by make_fx or torch.export."""
    return has_dispatch_modes() and _proxy_mode() is not None


def has_dispatch_modes() -> bool:
    """Whether any TorchDispatchMode is on. Without the means to know: yes."""
    size: Any = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return size is None or bool(size())


def _proxy_mode() -> Any:
    """The mode of make_fx or torch.export around the caller. Without the means to know: none."""
    get = getattr(importlib.import_module("torch.fx.experimental.proxy_tensor"), "get_proxy_mode", None)
    return None if get is None else get()


# Each gives something true if somebody else gets to see or change calls of torch: TorchFunctionModes, dispatch modes,
# torch.func's transforms. None: there are no means to know.
MODES: tuple[Callable[[], Any], ...] | None = (
    (_stack_size, torch._C._len_torch_dispatch_stack, torch._C._functorch.maybe_current_level, is_jit_tracing)
    if _stack_size is not None
    and hasattr(torch._C, "_len_torch_dispatch_stack")
    and hasattr(getattr(torch._C, "_functorch", None), "maybe_current_level")
    else None
)

# Counts up the versions of tensors, as an operation in place does. The public function asks for their types first.
increment_version: Callable[[Any], None] = getattr(
    torch._C, "_increment_version", torch.autograd.graph.increment_version
)

# Whether a tensor is what torch.func.vmap, grad or functionalize hand to a function: a wrapper that looks like a plain
# tensor. Without the means to know: no, and torch refuses to give its address.
in_transform: Callable[[torch.Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", lambda tensor: False
)


is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling


def traced_constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that torch.compile runs while it traces its caller. The result is a constant of the graph.

    This is torch.compiler.assume_constant_result, which imports the compiler. If torch forgets the attribute, the
    function is traced, and breaks the graph.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def keep_order(operator: str) -> None:
    """Tell torch.compile to call a custom operator as often as, and in the order that, the code does. Without the
    private function: calls of one graph may change places."""
    register = getattr(torch.library, "_register_effectful_op", None)
    effects = getattr(importlib.import_module("torch.library"), "EffectType", None)
    if register is not None and effects is not None:
        register(operator, effects.ORDERED)


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that torch.compile calls as it is, at the cost of a break in the graph.

    torch.compiler.disable does the same, but imports the compiler at once, which takes longer than all of fastinit.
    Without the private form, which imports it when it is needed, the public one serves.
    """
    disable = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    outside: Callable[_P, _R] = disable(function)

    @functools.wraps(function)
    def either(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_dynamo_compiling():
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return either
