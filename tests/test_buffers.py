"""Buffers of models born on the meta device: each must hold what it holds in the same model built on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
import zoo
from torch import nn

import fastinit
from fastinit import Where
from fastinit.meta.allocation import allocate_
from fastinit.meta.buffers import plan_restoration
from fastinit.meta.restoration import Restoration

CPU = torch.device("cpu")


def born(build: Callable[[], Any], buffers: Any = None, **settings: Any) -> tuple[Any, Restoration]:
    """The model, on meta until its buffers were found, then with memory and with its buffers restored."""
    with torch.device("meta"):
        model = build()
    before = everything(model)
    restoration = plan_restoration(model, buffers, **settings)
    assert everything(model) == before  # to find out changes nothing
    allocate_(model, CPU)
    restoration.restore_(CPU)
    return model, restoration


def everything(model: nn.Module) -> dict[str, Any]:
    """What every module of a model holds, by identity."""
    held: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        for kind in (module.__dict__, module._parameters, module._buffers, module._modules):
            held |= {f"{prefix}.{name}": id(value) for name, value in kind.items()}
        held[f"{prefix}: not persistent"] = frozenset(module._non_persistent_buffers_set)
    return held


def assert_same_buffers(model: nn.Module, expected: nn.Module) -> None:
    own, other = (dict(each.named_buffers(remove_duplicate=False)) for each in (model, expected))
    assert own.keys() == other.keys() and own
    for name, buffer in own.items():
        assert buffer.dtype == other[name].dtype and torch.equal(buffer, other[name]), name
    assert model.state_dict().keys() == expected.state_dict().keys()


def _transformers() -> dict[str, Callable[[Any], nn.Module]]:
    small: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 90,
    }  # fmt: skip
    eos = {"bos_token_id": 0, "eos_token_id": 1}
    llama3 = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }  # fmt: skip
    window = {"image_size": 32, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
    return {
        "bert": lambda hf: hf.BertModel(hf.BertConfig(**small)),
        "gemma": lambda hf: hf.GemmaForCausalLM(hf.GemmaConfig(**small, head_dim=8)),
        "gemma3": lambda hf: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**small, head_dim=8)),
        "llama": lambda hf: hf.LlamaForCausalLM(hf.LlamaConfig(**small)),
        "llama3": lambda hf: hf.LlamaForCausalLM(hf.LlamaConfig(**small, rope_parameters=llama3)),
        "mixtral": lambda hf: hf.MixtralForCausalLM(hf.MixtralConfig(**small, num_key_value_heads=2)),
        "gpt_neo": lambda hf: hf.GPTNeoModel(
            hf.GPTNeoConfig(
                **eos,
                hidden_size=32,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global", "local"], 1]],
                max_position_embeddings=16,
                window_size=4,
                vocab_size=90,
            )
        ),
        "resnet": lambda hf: hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "swin": lambda hf: hf.SwinModel(hf.SwinConfig(**window)),
        "swinv2": lambda hf: hf.Swinv2Model(hf.Swinv2Config(**window)),
    }


@pytest.mark.parametrize("kind", _transformers())
def test_transformers(kind: str) -> None:
    hf = pytest.importorskip("transformers")
    build = _transformers()[kind]
    model, _ = born(lambda: build(hf))
    assert_same_buffers(model, build(hf))


@pytest.mark.parametrize("kind", ["GPT2", "T5", "ViT", "Mamba"])
def test_transformers_without_buffers_have_nothing_to_restore(kind: str) -> None:
    hf = pytest.importorskip("transformers")
    small: dict[str, dict[str, Any]] = {
        "GPT2": {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1},
        "T5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20},
        "ViT": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        "Mamba": {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 20},
    }
    config = getattr(hf, f"{kind}Config")(**small[kind])
    model, restoration = born(lambda: getattr(hf, f"{kind}Model")(config))
    assert restoration.reasons == {}
    expected = getattr(hf, f"{kind}Model")(config)
    assert dict(model.named_buffers()).keys() == dict(expected.named_buffers()).keys() == set()


def test_batch_and_instance_norm() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            zoo.ResNet(zoo.BasicBlock, (1, 1), width=4, classes=3), nn.InstanceNorm1d(3, track_running_stats=True)
        )

    model, restoration = born(build)
    assert_same_buffers(model, build())
    assert restoration.reasons["0.bn1.running_var"] == "BatchNorm2d.reset_running_stats()"


class TuneRotary(nn.Module):
    """torchtune's way: buffers are registered anew."""

    def __init__(self, dim: int = 8, length: int = 16) -> None:
        super().__init__()
        self.dim, self.length = dim, length
        self.rope_init()

    def rope_init(self) -> None:
        theta = 1.0 / (10_000 ** (torch.arange(0, self.dim, 2).float() / self.dim))
        self.register_buffer("theta", theta, persistent=False)
        angles = torch.einsum("i, j -> ij", torch.arange(self.length, dtype=theta.dtype), theta).float()
        self.register_buffer("cache", torch.stack([angles.cos(), angles.sin()], dim=-1), persistent=False)


class TimmRotary(nn.Module):
    """timm's way: in place, on the device of the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", torch.empty(6), persistent=False)
        self._init_buffers()

    def _init_buffers(self) -> None:
        self.bands.copy_(torch.linspace(1.0, 5.0, 6, device=self.bands.device) ** 2)

    def init_non_persistent_buffers(self) -> None:
        self._init_buffers()


class TitanExperts(nn.Module):
    """torchtitan's: only the block above knows what to call it with."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(4, 3, 3))
        self.register_buffer("expert_bias", torch.zeros(4))
        self.register_buffer("tokens_per_expert", torch.zeros(4), persistent=False)

    def init_weights(self, init_std: float, buffer_device: torch.device) -> None:
        nn.init.trunc_normal_(self.w1, std=init_std)
        with torch.device(buffer_device):
            self.tokens_per_expert = torch.zeros(4)
            self.expert_bias = torch.zeros(4)


class TitanBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moe = TitanExperts()

    def init_weights(self, buffer_device: torch.device) -> None:
        self.moe.init_weights(0.02, buffer_device)


class Titan(nn.Module):
    """torchtitan's way: all from the top, with complex frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(10, 4)
        self.layers = nn.ModuleDict({str(layer): TitanBlock() for layer in range(2)})
        self.register_buffer("freqs_cis", self._precompute_freqs_cis(), persistent=False)

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        with torch.device(buffer_device or self.freqs_cis.device):
            self.freqs_cis = self._precompute_freqs_cis()
        nn.init.normal_(self.tok_embeddings.weight)
        for layer in self.layers.values():
            layer.init_weights(buffer_device)

    def _precompute_freqs_cis(self) -> torch.Tensor:
        angles = torch.outer(torch.arange(12), 1.0 / 5e5 ** (torch.arange(0, 8, 2).float() / 8)).float()
        return torch.polar(torch.ones_like(angles), angles)


class LitGPT(nn.Module):
    """litgpt's way: assigned by reset_parameters, on the device of what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        cos, sin = self.rope_cache()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def rope_cache(self, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.outer(torch.arange(6, device=device), torch.arange(1, 4, device=device) / 7)
        return angles.cos(), angles.sin()

    def reset_parameters(self) -> None:
        self.cos, self.sin = self.rope_cache(device=self.cos.device)


class Masked(nn.Module):
    """Its child's buffer is another's to compute, and of a dtype with few values."""

    def __init__(self, dtype: torch.dtype = torch.bool, depth: int = 1) -> None:
        super().__init__()
        self.register_buffer("mask", torch.empty(3, 3, dtype=dtype))
        self.inner = Masked(torch.bool, 0) if depth else nn.Identity()
        self.reset_parameters()

    def rope_init(self) -> None:
        """Computes nothing; a second method has to be tried."""

    def reset_parameters(self) -> None:
        self.mask.copy_(torch.ones(3, 3).tril())


class Asking(nn.Module):
    """Asks a parameter where it is, as timm's window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.register_buffer("table", torch.empty(6, 3), persistent=False)
        self.register_buffer("bias", torch.empty(6), persistent=False)
        self._fill()

    def _fill(self) -> None:
        weight = self.proj.weight
        table = torch.arange(18, device=weight.device, dtype=weight.dtype)
        self.get_buffer("table").copy_(table.view(6, 3).log1p())
        self.get_buffer("bias").zero_()

    def init_non_persistent_buffers(self) -> None:
        self._fill()


@pytest.mark.parametrize("kind", [Asking, TuneRotary, TimmRotary, Titan, LitGPT, Masked, lambda: Masked(torch.uint8)])
def test_what_modules_compute_themselves(kind: Callable[[], nn.Module]) -> None:
    def build() -> nn.Module:
        return nn.Sequential(kind(), nn.ModuleList([kind()]))

    state = torch.get_rng_state()
    model, _ = born(build)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_buffers(model, build())


@pytest.mark.parametrize("kind", [TuneRotary, TimmRotary, LitGPT])
def test_ambient_modes_do_not_matter(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = kind()
        with torch.inference_mode():
            restoration = plan_restoration(model)
    allocate_(model, CPU)
    restoration.restore_(CPU)
    assert_same_buffers(model, kind())
    assert not any(each.is_inference() for each in model.buffers())


def test_rotary_embeddings_of_transformers_outside_of_a_model() -> None:
    hf = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    for config in (hf.LlamaConfig(), hf.LlamaConfig(rope_parameters=parameters)):
        model, restoration = born(lambda config=config: nn.Sequential(LlamaRotaryEmbedding(config)))  # type: ignore[misc]
        assert_same_buffers(model, nn.Sequential(LlamaRotaryEmbedding(config)))
        assert restoration.reasons["0.inv_freq"] == "LlamaRotaryEmbedding.rope_init_fn"


class OlderRotary(nn.Module):
    """As in models written for transformers 4: the original frequencies are another name, and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.rope_init_fn = {"dim": 8}, _frequencies
        inv_freq, self.scaling = self.rope_init_fn(self.config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.original_inv_freq = self.inv_freq


def _frequencies(config: dict[str, int], device: Any = None) -> tuple[torch.Tensor, float]:
    return 1.0 / 1e4 ** (torch.arange(0, config["dim"], 2, device=device) / config["dim"]), 1.0


def test_a_second_name_of_a_buffer_stays_one() -> None:
    model, _ = born(OlderRotary)
    assert_same_buffers(model, OlderRotary())
    assert model.original_inv_freq is model.inv_freq


class Holder(nn.Module):
    """A module with one buffer, and nothing that computes it."""

    def __init__(self, name: str = "table", value: Any = None, **modules: nn.Module) -> None:
        super().__init__()
        self.register_buffer(name, torch.linspace(0.0, 1.0, 5) if value is None else value())
        for own_name, module in modules.items():
            self.add_module(own_name, module)


class Counted(nn.Module):
    """A normalisation that counts batches as torch's does, and is none of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))


def _mask(dtype: torch.dtype) -> torch.Tensor:
    return torch.tril(torch.ones(6, 6, dtype=dtype)).view(1, 1, 6, 6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Holder("position_ids", lambda: torch.arange(7).expand((1, -1))),
        lambda: Holder("position_ids", lambda: torch.arange(7)),
        lambda: Holder("token_type_ids", lambda: torch.zeros(1, 7, dtype=torch.long)),
        lambda: Holder("bias", lambda: _mask(torch.float32), c_attn=nn.Linear(2, 6)),
        lambda: Holder("bias", lambda: _mask(torch.bool), c_attn=nn.Linear(2, 6)),
        lambda: Holder("masked_bias", lambda: torch.tensor(-1e4), c_attn=nn.Linear(2, 6)),
        lambda: Holder("anything", lambda: torch.empty(0, 3)),
        Counted,
    ],
)
def test_what_follows_from_name_and_shape(build: Callable[[], nn.Module]) -> None:
    model, restoration = born(build)
    assert_same_buffers(model, build())
    assert set(restoration.reasons.values()) == {"follows from its name and shape"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: Holder("position_ids", lambda: torch.zeros(7)),  # of a floating-point dtype
        lambda: Holder("position_ids", lambda: torch.zeros(2, 7, dtype=torch.long)),
        lambda: Holder("token_type_ids", lambda: torch.zeros(7)),
        lambda: Holder("bias", lambda: _mask(torch.bool)),  # not GPT-2's attention
        lambda: Holder("bias", lambda: torch.zeros(1, 1, 6, 5), c_attn=nn.Linear(2, 6)),
        lambda: Holder("masked_bias", lambda: torch.tensor(-1e9)),
        lambda: Holder("running_var", lambda: torch.ones(3)),
        lambda: Holder("inv_freq"),
    ],
)
def test_what_only_looks_like_it_is_refused(build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match="cannot restore"):
        plan_restoration(model)


class Fickle(nn.Module):
    """Its ways to compute its buffer fail, each in another manner."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("part", torch.ones(4))

    def rope_init(self) -> None:
        self.part[:2] = 1.0

    def init_buffers(self) -> None:
        self.part.fill_(self.weight.sum().item())

    def reset_parameters(self) -> None:
        self.part = torch.ones(5)

    def init_weights(self) -> None:
        self.part = torch.ones(4, dtype=torch.long)


def test_an_error_names_every_buffer_and_what_was_tried() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Holder(), nn.BatchNorm1d(3), nn.ModuleDict({"deep": Holder("scale")}), Fickle())
    before = everything(model)
    with pytest.raises(ValueError, match="cannot restore") as error:
        plan_restoration(model)
    message = str(error.value)
    assert "0.table (buffer of Holder, torch.float32, 5), 2.deep.scale (buffer of Holder" in message
    assert "running_mean" not in message
    assert "buffers=[('0.table', lambda module: ...)]" in message
    assert "3.part (buffer of Fickle, torch.float32, 4" in message
    assert "Fickle.init_buffers() raised RuntimeError: Tensor.item() cannot be called on meta" in message
    assert "Fickle.reset_parameters() gives shape (5,), expected (4,)" in message
    assert "Fickle.init_weights() gives torch.int64, expected torch.float32" in message
    assert everything(model) == before


class Interrupted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.ones(4))

    def rope_init(self) -> None:
        self.part.fill_(9.0)
        raise OSError("no file")

    def reset_parameters(self) -> None:
        pass


def test_what_was_written_before_an_error_is_not_believed() -> None:
    with torch.device("meta"):
        model = Interrupted()
    with pytest.raises(ValueError, match=r"part .*; Interrupted.rope_init\(\) raised OSError: no file\)"):
        plan_restoration(model)


class Otherwise(TuneRotary):
    """Its method leaves more behind than it found."""

    def rope_init(self) -> None:
        super().rope_init()
        if hasattr(self, "built"):
            self.register_buffer("extra", torch.ones(1), persistent=False)
        self.built = self.__dict__.get("built", 0) + 1


def test_nothing_else_of_what_a_method_does_stays() -> None:
    model, _ = born(Otherwise)  # compares all that the modules hold
    assert model.built == 1


@pytest.mark.parametrize(
    "selector",
    ["*.table", "1.table", Holder, Where(type="Holder", dims=1), lambda name, module, buffer: buffer.shape == (5,)],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_users_own(selector: Any, in_place: bool) -> None:
    def compute(module: Holder) -> None:
        assert module.table.device == CPU
        if in_place:
            torch.linspace(0.0, 1.0, 5, out=module.table)
        else:
            module.table = torch.linspace(0.0, 1.0, 5)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), Holder())

    model, restoration = born(build, [(selector, compute)])
    assert_same_buffers(model, build())
    assert restoration.reasons["1.table"].startswith("rule ")


def test_the_users_own_comes_first_and_the_first_of_them() -> None:
    def fill(value: float) -> Callable[[Any], Any]:
        return lambda module: module.running_mean.fill_(value)

    model, _ = born(lambda: nn.BatchNorm1d(2), [("running_mean", fill(3.0)), ("*_mean", fill(4.0))])
    assert model.running_mean.tolist() == [3.0, 3.0] and model.running_var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda module: None, "rule 'table' selects table, but its function has neither assigned nor filled it"),
        (lambda module: module.nothing, "its function raised AttributeError: 'Holder' object has no attribute 'noth"),
        (lambda module: setattr(module, "table", torch.ones(3)), r"gives shape \(3,\), expected \(5,\)"),
        (lambda module: module.table[:3].zero_(), "neither assigned nor filled"),
        (lambda module: setattr(module, "table", None), "neither assigned nor filled"),
    ],
)
def test_functions_of_the_user_that_do_not_do_it_are_refused(compute: Any, message: str) -> None:
    with torch.device("meta"):
        model = Holder()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        plan_restoration(model, [("table", compute)])
    assert everything(model) == before


def test_selectors_are_checked() -> None:
    with pytest.raises(TypeError, match=r"buffers: expected \(selector, function of the module\) pairs, got 'table'"):
        plan_restoration(nn.Linear(1, 1), ["table"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="buffers: expected"):
        plan_restoration(nn.Linear(1, 1), [("table", 3)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="select: expected"):
        plan_restoration(nn.Linear(1, 1), [(3, print)])  # type: ignore[list-item]
    with pytest.warns(UserWarning, match="buffers: no buffer matches rule 'tabel'"):
        plan_restoration(Holder(), [("tabel", print)])
    with pytest.raises(ValueError, match="strict: buffers: no buffer matches rule 'tabel'"):
        plan_restoration(Holder(), [("tabel", print)], strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_restoration(Holder(), [("table", print)])  # it has memory: nothing to do


class Mixed(nn.Module):
    """Built for a part on meta: its method would overwrite what is real."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 5.0, device="cpu"))
        self.register_buffer("kept", torch.full((2,), 6.0, device="cpu"))
        self.note = torch.full((2,), 7.0, device="cpu")
        self.register_buffer("lost", torch.zeros(2))

    def reset_parameters(self) -> None:
        for each in (self.weight, self.kept, self.note, self.lost):
            each.data.fill_(1.0)
        self.calls = 1


def test_what_has_memory_is_not_disturbed() -> None:
    model, _ = born(Mixed)
    assert [each[0].item() for each in (model.weight, model.kept, model.note, model.lost)] == [5.0, 6.0, 7.0, 1.0]
    assert not hasattr(model, "calls")


class Attribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(3, dtype=torch.bool)
        self.register_buffer("shared", torch.ones(2))
        self.inner = nn.Linear(1, 1)
        self.inner.register_buffer("shared", self.shared)

    def reset_parameters(self) -> None:
        self.mask = torch.ones(3, dtype=torch.bool)
        self.shared.fill_(1.0)


def test_plain_attributes_and_ties_of_buffers() -> None:
    model, restoration = born(Attribute)
    assert model.mask.tolist() == [True] * 3 and model.mask.device == CPU
    assert model.inner.shared is model.shared and model.shared.tolist() == [1.0, 1.0]
    assert set(restoration.reasons) == {"shared", "mask"}
    dropped, _ = born(Attribute, [("mask", lambda module: setattr(module, "mask", None))])
    assert dropped.mask is None


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.empty(64))

    def reset_parameters(self) -> None:
        self.directions.normal_()


def test_random_buffers_follow_from_seed_and_name() -> None:
    def draws(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed + 17)  # has no say
        model, _ = born(lambda: nn.Sequential(Random(), Random()), seed=seed)
        return [each.directions for each in model]

    first, second = draws(1), draws(1)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], draws(2)[0])


def test_restoring_wants_memory_and_a_device() -> None:
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    restoration = plan_restoration(model)
    with pytest.raises(ValueError, match="running_mean: is on the meta device still; allocate the model first"):
        restoration.restore_(CPU)


def test_values_take_the_dtype_that_allocation_gave() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.BatchNorm1d(3), TuneRotary())
    restoration = plan_restoration(model)
    allocate_(model, CPU, torch.bfloat16)
    restoration.restore_(CPU)
    assert model[0].running_var.dtype == torch.bfloat16 and model[0].running_var.tolist() == [1.0] * 3
    assert torch.equal(model[1].theta, TuneRotary().theta)


def _spectral(old: bool) -> Callable[[], nn.Module]:
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return lambda: nn.Sequential(norm(nn.Linear(20, 12)), norm(nn.Conv2d(3, 4, 3)))


def _norms(model: Any) -> list[float]:
    return [torch.linalg.matrix_norm(each.weight.detach().flatten(1), 2).item() for each in model.eval()]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("through_the_weight", [False, True])
def test_spectral_norm_knows_the_norm_of_the_new_weight(old: bool, through_the_weight: bool) -> None:
    model, restoration = born(_spectral(old))
    for each in model.parameters():
        nn.init.normal_(each, generator=torch.Generator().manual_seed(0))
    if through_the_weight:
        fastinit.init_model_(model, "normal", seed=1)
    vectors = [each.clone() for each in model.buffers()]
    restoration.settle_()
    unchanged = all(map(torch.equal, vectors, model.buffers()))
    assert unchanged == through_the_weight  # setting the weight has done it already
    assert _norms(model) == pytest.approx([1.0, 1.0], rel=0.05)


def test_spectral_norm_starts_with_unit_vectors_that_follow_from_the_name() -> None:
    (first, _), (second, _) = born(_spectral(False)), born(_spectral(False))
    for own, other in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(own, other) and own.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8)])  # torch refuses square ones on meta
def test_orthogonal_weights_come_out_orthogonal(shape: tuple[int, int]) -> None:
    model, restoration = born(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(*shape, bias=False)))
    for each in model.parameters():
        nn.init.zeros_(each)
    fastinit.init_model_(model, "orthogonal", seed=0)
    restoration.settle_()
    weight = model.weight.detach() if shape[0] >= shape[1] else model.weight.detach().mT
    small = weight.mT @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.mT
    torch.testing.assert_close(small, torch.eye(min(shape)), rtol=0, atol=1e-5)


def test_the_older_weight_norm_has_a_weight_before_the_first_pass() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        model, restoration = born(lambda: nn.utils.weight_norm(nn.Linear(3, 2)))
    for each in model.parameters():
        nn.init.ones_(each)
    restoration.settle_()
    torch.testing.assert_close(model.weight, torch.full((2, 3), 3**-0.5))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process as a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_spectral_norm_of_a_sharded_weight_is_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for old in (False, True):
        with torch.device("meta"):
            model = fully_shard(_spectral(old)(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="spectral_norm needs the whole weight, got a sharded one"):
            plan_restoration(model)


@pytest.mark.usefixtures("alone")
def test_a_sharded_model_of_transformers() -> None:
    hf = pytest.importorskip("transformers")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def build() -> Any:
        return _transformers()["llama"](hf)

    def sharded() -> Any:
        model: Any = build()
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    model, _ = born(sharded)
    expected = build().eval()
    assert_same_buffers(model, expected)
    for own, other in zip(model.parameters(), expected.parameters(), strict=True):
        own.to_local().detach().copy_(other.detach())
    tokens = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(model.eval()(tokens).logits, expected(tokens).logits)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("rows", torch.empty(5, 3))
        self.norm = nn.BatchNorm1d(4)
        self.init_buffers()

    def init_buffers(self) -> None:
        self.rows = torch.arange(15.0).view(5, 3)


def _distributed_buffers() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor

    rank = dist.get_rank()
    with torch.device("meta"):
        model = Tables()
    mesh = init_device_mesh("cpu", (2,))
    distribute_module(model, mesh)
    model.rows = distribute_tensor(torch.empty(5, 3, device="meta"), mesh, [Shard(0)])
    restoration = plan_restoration(model)
    allocate_(model, CPU)
    restoration.restore_(CPU)
    buffers: dict[str, Any] = dict(model.named_buffers())
    assert all(type(each) is DTensor and each.device == CPU for each in buffers.values())
    assert torch.equal(buffers["rows"].to_local(), Tables().rows.chunk(2)[rank])
    assert buffers["norm.running_var"].to_local().tolist() == [1.0] * 4
    assert buffers["norm.num_batches_tracked"].to_local().item() == 0


@pytest.mark.slow
def test_buffers_that_are_distributed() -> None:
    worlds.run(2, _distributed_buffers)
