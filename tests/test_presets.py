"""Presets against the published formulas, and against the models of the libraries that publish them."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
import zoo
from conftest import library_of_models
from scipy import stats
from torch import nn

import fastinit
from fastinit import presets
from fastinit.schemes import distributions
from fastinit.schemes.distributions import Distribution

# The library's own code, at import.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers")


class Law(NamedTuple):
    """What a parameter's values are distributed as: the moments that tests compare, and a bound (inf: none)."""

    mean: float
    std: float
    bound: float = math.inf
    kurtosis: float = 3.0
    zero_row: int | None = None

    def kinds(self) -> tuple[type[Distribution], ...]:
        if self.std == 0.0:
            return (distributions.Constant,)
        if self.kurtosis == 1.8:
            return (distributions.Uniform,)
        # A truncation many sigmas out, which some libraries write, is as good as none.
        return (
            (distributions.TruncNormal,) if self.bound < math.inf else (distributions.Normal, distributions.TruncNormal)
        )


def constant(value: float) -> Law:
    return Law(value, 0.0)


def normal(std: float, *, zero_row: int | None = None) -> Law:
    return Law(0.0, std, zero_row=zero_row)


def uniform(bound: float) -> Law:
    return Law(0.0, bound / math.sqrt(3.0), bound, 1.8)


# Moments of a standard normal within +-2, by the density and the error function.
_F2, _Z2 = math.exp(-2.0) / math.sqrt(2.0 * math.pi), math.erf(math.sqrt(2.0))
_VAR2 = 1.0 - 4.0 * _F2 / _Z2
_KURTOSIS2 = (3.0 * _VAR2 - 16.0 * _F2 / _Z2) / _VAR2**2
_F3, _Z3 = math.exp(-4.5) / math.sqrt(2.0 * math.pi), math.erf(3.0 / math.sqrt(2.0))
_VAR3 = 1.0 - 6.0 * _F3 / _Z3
_KURTOSIS3 = (3.0 * _VAR3 - 54.0 * _F3 / _Z3) / _VAR3**2


def truncated(std: float) -> Law:
    """Cut at two sigma, of this std thereafter (JAX)."""
    return Law(0.0, std, 2.0 * std / math.sqrt(_VAR2), _KURTOSIS2)


OTHER = None  # compared by a test of its own

Expected = Iterable[tuple[str, Law | None]]


def law_of(name: str, expected: Expected) -> Law | None:
    for pattern, law in expected:
        if re.search(pattern, name):
            return law
    raise AssertionError(f"no formula for {name}")


def check_stated(distribution: Distribution | None, law: Law, name: str) -> None:
    """The plan's numbers are the formula's."""
    inner = distribution
    if law.zero_row is not None:
        assert isinstance(distribution, distributions.ZeroRow) and distribution.row == law.zero_row, name
        inner = distribution.rest
    else:
        assert not isinstance(distribution, distributions.ZeroRow), name
    assert inner is not None
    assert inner.mean() == pytest.approx(law.mean, rel=1e-12, abs=1e-300), name
    assert inner.std() == pytest.approx(law.std, rel=1e-12, abs=1e-300), name
    assert isinstance(inner, law.kinds()), name
    bounds = inner if isinstance(inner, (distributions.Uniform, distributions.TruncNormal)) else None
    if law.bound == math.inf:
        assert bounds is None or bounds.high > 50.0 * law.std, name
    else:
        assert bounds is not None and (-bounds.low, bounds.high) == pytest.approx((law.bound,) * 2, rel=1e-12), name


def moments(tensor: torch.Tensor, zero_row: int | None) -> tuple[torch.Tensor, float, float]:
    if zero_row is not None:
        tensor = torch.cat([tensor[:zero_row], tensor[zero_row + 1 :]])
    values = tensor.double().flatten()
    return values, float(values.mean()), float(values.std(unbiased=False))


def check_values(tensor: torch.Tensor, law: Law, name: str) -> None:
    """The values fit the formula to five standard errors, and reach the bounds that they keep to."""
    tensor = tensor.detach()
    if law.zero_row is not None:
        assert (tensor[law.zero_row] == 0.0).all(), name
    if law.std == 0.0:
        assert torch.equal(tensor, torch.full_like(tensor, law.mean)), name
        return
    values, mean, std = moments(tensor, law.zero_row)
    count = values.numel()
    assert abs(mean - law.mean) < 5.0 * law.std / math.sqrt(count), name
    assert abs(std - law.std) < 5.0 * law.std * math.sqrt((law.kurtosis - 1.0) / (4.0 * count)), name
    if law.bound < math.inf:
        # A gap of more than this to the bound has a chance of 1e-7; truncated normals are thinner there.
        gap = 2.0 * law.bound * 17.0 / count * (1.0 if law.kurtosis < 2.0 else 8.0)
        largest = float(values.abs().max())
        assert law.bound * (1.0 - 2**-20) - gap < largest <= law.bound * (1.0 + 2**-23), name


def check_alike(ours: torch.Tensor, theirs: torch.Tensor, law: Law, name: str) -> None:
    """Two samples of one law: equal where constant, else mean and std within five standard errors."""
    ours, theirs = ours.detach(), theirs.detach()
    assert ours.shape == theirs.shape, name
    if law.std == 0.0:
        assert torch.equal(ours, theirs), name
        return
    zero_rows = [[row for row in range(each.shape[0]) if (each[row] == 0.0).all()] for each in (ours, theirs)]
    assert zero_rows[0] == zero_rows[1] == ([] if law.zero_row is None else [law.zero_row]), name
    (values, mean, std), (_, their_mean, their_std) = (moments(each, law.zero_row) for each in (ours, theirs))
    count = values.numel()
    assert abs(mean - their_mean) < 5.0 * math.sqrt(2.0 / count) * law.std, name
    assert abs(std - their_std) < 5.0 * law.std * math.sqrt((law.kurtosis - 1.0) / (2.0 * count)), name


def check_preset(
    model: nn.Module, preset: str | fastinit.Recipe, expected: Expected, published: nn.Module | None = None
) -> fastinit.Plan:
    """The plan and the values of a preset fit the formulas; so do the values that a library gives, and all is
    covered."""
    expected = list(expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    plan = fastinit.plan(model, preset, seed=11, strict=True)
    assert plan.uncovered == ()
    rows = {row.name: row for row in plan.rows}
    plan.run_()
    theirs = {} if published is None else dict(published.named_parameters())
    if published is not None:
        assert theirs.keys() == dict(model.named_parameters()).keys()
    used = set()
    for name, parameter in model.named_parameters():
        law = law_of(name, expected)
        used.add(next(pattern for pattern, _ in expected if re.search(pattern, name)))
        assert rows[name].action == "init", name
        if law is None:
            continue
        check_stated(rows[name].distribution, law, name)
        check_values(parameter, law, name)
        if published is not None:
            check_values(theirs[name], law, f"published {name}")
            check_alike(parameter, theirs[name], law, name)
    assert used == {pattern for pattern, _ in expected}
    return plan


def test_the_checks_notice_a_wrong_std_mean_bound_and_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(200, 200, generator=generator)
    check_values(tensor, normal(1.0), "")
    for wrong in (normal(1.03), Law(0.03, 1.0), uniform(math.sqrt(3.0)), normal(1.0, zero_row=2), constant(1.0)):
        with pytest.raises(AssertionError):
            check_values(tensor, wrong, "")
    other = torch.randn(200, 200, generator=generator)
    check_alike(tensor, other, normal(1.0), "")
    for wrong_twin in (1.03 * other, other + 0.05, torch.cat([torch.zeros(1, 200), other[1:]])):
        with pytest.raises(AssertionError):
            check_alike(tensor, wrong_twin, normal(1.0), "")


# Models of transformers.


@functools.cache
def _transformers() -> Any:
    return pytest.importorskip("transformers")


def pair(kind: str, **config: Any) -> tuple[nn.Module, nn.Module]:
    """A model as transformers initialises it, and another one of the same config."""
    transformers = _transformers()
    name = kind.removesuffix("LMHeadModel").removesuffix("ForConditionalGeneration")
    name = re.sub(r"For\w+$", "", name)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(getattr(transformers, kind)._from_config(getattr(transformers, f"{name}Config")(**config)))
    return made[0], made[1]


@pytest.mark.parametrize(("layers", "std"), [(3, None), (2, 0.05)])
@pytest.mark.parametrize("cross", [False, True])
def test_gpt2(layers: int, std: float | None, cross: bool) -> None:
    config = {} if std is None else {"initializer_range": std}
    published, model = pair(
        "GPT2LMHeadModel",
        n_embd=128, n_layer=layers, n_head=4, vocab_size=500, n_positions=64, add_cross_attention=cross, **config,
    )  # fmt: skip
    std = std or 0.02
    expected = [
        (r"(^|\.)ln_\w+\.weight$|ln_f\.weight$", constant(1.0)),
        (r"\.bias$", constant(0.0)),
        (r"\.c_proj\.weight$", normal(std / math.sqrt(2 * layers))),
        (r"\.(wte|wpe|c_attn|c_fc)\.weight$", normal(std)),
    ]
    if cross:
        expected.append((r"\.q_attn\.weight$", normal(std)))
    plan = check_preset(model, "gpt2", expected, published)
    assert {row.name: row.reason for row in plan.rows if row.action == "tied"} == {
        "lm_head.weight": "tied to transformer.wte.weight"
    }
    assert model.lm_head.weight is model.transformer.wte.weight


def test_gpt2_by_the_argument_and_by_nanogpts_names() -> None:
    blocks = nn.ModuleList(nn.ModuleDict({"c_attn": nn.Linear(32, 96), "c_proj": nn.Linear(32, 32)}) for _ in range(8))
    model = nn.ModuleDict({"wte": nn.Embedding(100, 32), "h": blocks})
    expected = [(r"bias$", constant(0.0)), (r"c_proj", normal(0.1 / 4.0)), (r".", normal(0.1))]
    check_preset(model, presets.gpt2(model, std=0.1), expected)


@pytest.mark.parametrize(
    ("padding", "bias", "tied", "std"), [(None, False, False, 0.02), (3, True, False, 0.02), (0, False, True, 0.1)]
)
def test_llama(padding: int | None, bias: bool, tied: bool, std: float) -> None:
    published, model = pair(
        "LlamaForCausalLM",
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500, pad_token_id=padding, attention_bias=bias, mlp_bias=bias, initializer_range=std,
        tie_word_embeddings=tied,
    )  # fmt: skip
    expected = [
        (r"norm\.weight$", constant(1.0)),
        (r"embed_tokens\.weight$", normal(std, zero_row=padding)),
        (r"_proj\.weight$", normal(std)),
    ]
    if bias:
        expected.append((r"\.bias$", constant(0.0)))
    if not tied:
        expected.append((r"^lm_head\.weight$", normal(std)))
    check_preset(model, "llama", expected, published)


@pytest.mark.parametrize("std", [0.02, 0.05])
def test_vit_of_transformers(std: float) -> None:
    published, model = pair(
        "ViTForImageClassification",
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=64,
        patch_size=8, num_labels=50, initializer_range=std,
    )  # fmt: skip
    expected = [
        (r"layernorm\w*\.weight$", constant(1.0)),
        (r"\.bias$", constant(0.0)),
        (r"cls_token$|position_embeddings$|projection\.weight$|(_proj|fc\d|classifier)\.weight$", normal(std)),
    ]
    check_preset(model, "vit", expected, published)


def test_mask_token_of_vit() -> None:
    published, model = pair(
        "ViTForMaskedImageModeling",
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
    )  # fmt: skip
    expected = [(r"mask_token|\.bias$", constant(0.0)), (r"layernorm", constant(1.0)), (r".", normal(0.02))]
    check_preset(model, "vit", expected, published)


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForMaskedLM"])
@pytest.mark.parametrize(("padding", "std"), [(0, 0.02), (5, 0.1)])
def test_bert(kind: str, padding: int, std: float) -> None:
    published, model = pair(
        kind,
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, vocab_size=500,
        max_position_embeddings=64, pad_token_id=padding, initializer_range=std,
    )  # fmt: skip
    expected = [
        (r"LayerNorm\.weight$", constant(1.0)),
        (r"\.bias$", constant(0.0)),
        (r"word_embeddings\.weight$", normal(std, zero_row=padding)),
        (r"\.weight$", normal(std)),
    ]
    check_preset(model, "bert", expected, published)


def t5_expected(model: Any, gated: bool) -> list[tuple[str, Law | None]]:
    config = model.config
    d, d_kv, d_ff, heads = config.d_model, config.d_kv, config.d_ff, config.num_heads
    f = config.initializer_factor
    return [
        (r"layer_norm\.weight$", constant(f)),
        (r"Attention\.q\.weight$", normal(f * (d * d_kv) ** -0.5)),
        (r"Attention\.[kv]\.weight$", normal(f * d**-0.5)),
        (r"Attention\.o\.weight$", normal(f * (heads * d_kv) ** -0.5)),
        (r"\.relative_attention_bias\.weight$", normal(f * d**-0.5)),
        (r"\.wi_[01]\.weight$" if gated else r"\.wi\.weight$", normal(f * d**-0.5)),
        (r"\.wo\.weight$", normal(f * d_ff**-0.5)),
        (r"^(shared|lm_head|encoder\.embed_tokens|decoder\.embed_tokens)\.weight$", normal(f)),
    ]


T5 = {
    "d_model": 96, "d_kv": 24, "d_ff": 160, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3,
    "vocab_size": 300, "relative_attention_num_buckets": 32, "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated"])
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_t5(gated: bool, factor: float) -> None:
    kind = "gated-gelu" if gated else "relu"
    published, model = pair(
        "T5ForConditionalGeneration", feed_forward_proj=kind, initializer_factor=factor, **T5
    )  # fmt: skip
    check_preset(model, "t5", t5_expected(model, gated), published)


def test_t5_with_an_output_of_its_own() -> None:
    transformers = _transformers()
    config = transformers.T5Config(**T5)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    published = transformers.T5ForConditionalGeneration._from_config(config)
    model = transformers.T5ForConditionalGeneration._from_config(config)
    assert "lm_head.weight" in dict(model.named_parameters())
    check_preset(model, "t5", t5_expected(model, False), published)


def test_arguments_of_t5_come_before_the_config() -> None:
    model = pair("T5ForConditionalGeneration", **T5)[0]
    rows = {row.name: row for row in fastinit.plan(model, presets.t5(model, d_kv=9, factor=0.5)).rows}
    attention = "encoder.block.0.layer.0.SelfAttention"
    stated = [rows[f"{attention}.{name}.weight"].distribution for name in ("q", "relative_attention_bias")]
    assert [each.std() for each in stated if each] == pytest.approx([0.5 / (96 * 9) ** 0.5, 0.5 / 96**0.5], rel=1e-12)


def mamba_expected(config: Any) -> list[tuple[str, Law | None]]:
    inner, rank, r = config.intermediate_size, config.time_step_rank, config.initializer_range
    step = rank**-0.5 * config.time_step_scale
    out = inner**-0.5 / (math.sqrt(config.num_hidden_layers) if config.rescale_prenorm_residual else 1.0)
    return [
        (r"\.A_log$", OTHER),
        (r"\.dt_proj\.bias$", OTHER),
        (r"\.D$|norm(_f)?\.weight$", constant(1.0)),
        (r"\.bias$", constant(0.0)),
        (r"\.dt_proj\.weight$", constant(step) if config.time_step_init_scheme == "constant" else uniform(step)),
        (r"\.conv1d\.weight$", uniform(config.conv_kernel**-0.5)),
        (r"\.out_proj\.weight$", uniform(out)),
        (r"\.(in_proj|x_proj|embeddings)\.weight$", normal(r)),
    ]


MAMBA_OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rescaled": {"rescale_prenorm_residual": True, "initializer_range": 0.03, "conv_kernel": 3},
    "time steps": {"time_step_min": 0.02, "time_step_max": 0.5, "time_step_scale": 2.5, "time_step_rank": 20},
    "floor": {"time_step_floor": 0.01},
    "constant": {"time_step_init_scheme": "constant", "time_step_scale": 0.5},
}


def log_steps(bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(bias.detach().double()).log()


@pytest.mark.parametrize("options", MAMBA_OPTIONS.values(), ids=MAMBA_OPTIONS.keys())
def test_mamba(options: dict[str, Any]) -> None:
    published, model = pair(
        "MambaForCausalLM",
        hidden_size=128,
        num_hidden_layers=3,
        vocab_size=500,
        state_size=12,
        use_bias=True,
        **options,
    )
    config: Any = model.config
    check_preset(model, "mamba", mamba_expected(config), published)
    low, high, floor = config.time_step_min, config.time_step_max, config.time_step_floor
    for layer, their_layer in zip(model.backbone.layers, published.backbone.layers, strict=True):
        mixer, theirs = layer.mixer, their_layer.mixer
        states = torch.arange(1.0, 13.0, dtype=torch.float64).log().float().expand(256, 12)
        assert torch.equal(mixer.A_log, states)
        assert torch.allclose(theirs.A_log, states, rtol=2**-22, atol=0.0)
        steps = log_steps(mixer.dt_proj.bias)
        first = math.log(max(low, floor))
        assert first - 1e-5 <= steps.min() and steps.max() <= math.log(high) + 1e-5
        assert stats.ks_2samp(steps.numpy(), log_steps(theirs.dt_proj.bias).numpy()).pvalue > 1e-5
        if floor <= low:
            law = stats.uniform(math.log(low), math.log(high) - math.log(low))
            assert stats.kstest(steps.numpy(), law.cdf).pvalue > 1e-5
        else:
            at_floor = float((steps < first + 1e-4).double().mean())
            share = math.log(floor / low) / math.log(high / low)
            assert abs(at_floor - share) < 5.0 * math.sqrt(share * (1.0 - share) / 256)


def test_mamba2() -> None:
    published, model = pair(
        "Mamba2ForCausalLM",
        hidden_size=128, num_hidden_layers=2, vocab_size=500, state_size=16, num_heads=16, head_dim=16, n_groups=2,
        expand=2, rescale_prenorm_residual=True,
    )  # fmt: skip
    expected = [
        (r"\.A_log$", OTHER),
        (r"\.dt_bias$", OTHER),
        (r"\.D$|norm(_f)?\.weight$", constant(1.0)),
        (r"\.bias$", constant(0.0)),
        (r"\.conv1d\.weight$", uniform(0.5)),
        (r"\.out_proj\.weight$", uniform(1.0 / 16.0 / math.sqrt(2.0))),
        (r"in_proj|embeddings|lm_head", normal(0.1)),
    ]
    check_preset(model, "mamba", expected, published)
    mixer = model.backbone.layers[1].mixer
    assert torch.allclose(mixer.A_log, torch.arange(1.0, 17.0).log(), rtol=2**-22)
    steps = log_steps(mixer.dt_bias)
    assert math.log(1e-3) - 1e-5 <= steps.min() and steps.max() <= math.log(1e-1) + 1e-5


def resnet_expected(model: nn.Module, last_norm: str | None = None) -> list[tuple[str, Law | None]]:
    """Every convolution and classifier by itself: sqrt(2 / (k^2 C_out)), U(+-1 / sqrt(inputs))."""
    expected: list[tuple[str, Law | None]] = []
    if last_norm is not None:
        expected.append((last_norm, constant(0.0)))
    for name, module in model.named_modules():
        at = re.escape(name)
        if isinstance(module, nn.Conv2d):
            outputs = module.out_channels * math.prod(module.kernel_size)
            expected.append((rf"^{at}\.weight$", normal(math.sqrt(2.0 / outputs))))
        elif isinstance(module, nn.Linear):
            expected.append((rf"^{at}\.(weight|bias)$", uniform(module.in_features**-0.5)))
    return [*expected, (r"\.weight$", constant(1.0)), (r"\.bias$", constant(0.0))]


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("preset", ["resnet_plain", "resnet"])
def test_resnet_of_transformers(layer_type: str, preset: str) -> None:
    published, model = pair(
        "ResNetForImageClassification",
        embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type=layer_type, num_labels=100,
    )  # fmt: skip
    if preset == "resnet_plain":
        check_preset(model, preset, resnet_expected(model), published)
    else:
        last = rf"\.layer\.{1 if layer_type == 'basic' else 2}\.normalization\.weight$"
        check_preset(model, preset, resnet_expected(model, last))


@pytest.mark.parametrize(("block", "depths"), [zoo.RESNET18, zoo.RESNET50], ids=["ResNet-18", "ResNet-50"])
@pytest.mark.parametrize("preset", ["resnet_plain", "resnet"])
def test_resnet(block: Any, depths: tuple[int, ...], preset: str) -> None:
    model = zoo.ResNet(block, depths, width=16, classes=200)
    last = r"^layer\d\.\d+\.bn3\.weight$" if block is zoo.Bottleneck else r"^layer\d\.\d+\.bn2\.weight$"
    check_preset(model, preset, resnet_expected(model, last if preset == "resnet" else None))
    zeros = [name for name, parameter in model.named_parameters() if "weight" in name and (parameter == 0.0).all()]
    assert len(zeros) == (sum(depths) if preset == "resnet" else 0)


def test_resnet_with_groups_counts_all_outputs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(64, 64, 3, groups=8, bias=False)
            self.bn3 = nn.BatchNorm2d(64)

    model = nn.ModuleDict({"layer1": nn.Sequential(Block(), Block())})
    check_preset(model, "resnet", [(r"conv2", normal(math.sqrt(2.0 / (9 * 64)))), (r".", constant(0.0))])


@pytest.mark.parametrize("make", [zoo.dcgan_generator, zoo.dcgan_discriminator], ids=["generator", "discriminator"])
def test_dcgan(make: Callable[[], nn.Module]) -> None:
    model = make()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    expected: Expected = [
        (rf"^({'|'.join(map(re.escape, norms))})\.weight$", Law(1.0, 0.02)),
        (r"\.bias$", constant(0.0)),
        (r"\.weight$", normal(0.02)),
    ]
    check_preset(model, "dcgan", expected)


class Sines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 96), nn.Linear(96, 96), nn.Linear(96, 3))


@pytest.mark.parametrize("omega", [30.0, 5])
def test_siren(omega: float) -> None:
    model = nn.ModuleDict({"field": Sines()})
    bound = math.sqrt(6.0 / 96.0) / omega
    expected = [
        (r"^field\.net\.0\.weight$", uniform(1.0 / 2.0)),
        (r"^field\.net\.[12]\.weight$", uniform(bound)),
        (r"^field\.net\.0\.bias$", uniform(2.0**-0.5)),
        (r"^field\.net\.[12]\.bias$", uniform(96.0**-0.5)),
    ]
    plan = fastinit.plan(model, presets.siren(model, omega=omega), seed=11, strict=True)
    for row in plan.rows:
        law = law_of(row.name, expected)
        assert law is not None
        check_stated(row.distribution, law, row.name)
    wrapped = nn.DataParallel(model)
    rows = fastinit.plan(wrapped, presets.siren(wrapped, omega=omega), strict=True).rows
    assert [row.distribution for row in rows] == [row.distribution for row in plan.rows]


def test_siren_keeps_the_distribution_of_activations() -> None:
    """Sitzmann et al. 2020, theorem 1.8: before every sine N(0, 1), after it arcsine of std 1 / sqrt(2)."""
    sizes = [1, *[1024] * 5]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    fastinit.init_model_(model, "siren", seed=0)
    signal = torch.linspace(-1.0, 1.0, 512)[:, None]
    with torch.no_grad():
        for layer, linear in enumerate(model):
            before = 30.0 * linear(signal)
            if layer > 1:
                assert float((before - 30.0 * linear.bias).std()) == pytest.approx(1.0, abs=0.15)  # type: ignore[operator]
            signal = before.sin()
            assert float(signal.std()) == pytest.approx(0.5**0.5, abs=0.05)


def test_llama_depth() -> None:
    model = zoo.Llama(width=128, depth=3)
    expected: list[tuple[str, Law | None]] = [(r"norm\.weight$", constant(1.0)), (r"^tok_embeddings", normal(1.0))]
    for layer in range(3):
        deep = normal(0.02 / math.sqrt(2.0 * (layer + 1)))
        expected.append((rf"^layers\.{layer}\.\w+\.(wo|w2|w3)\.weight$", deep))
    expected.append((r"\.(wq|wk|wv|w1)\.weight$", normal(0.02)))
    sigma = 128**-0.5
    expected.append((r"^output\.weight$", Law(0.0, sigma * math.sqrt(_VAR3), 3.0 * sigma, _KURTOSIS3)))
    check_preset(model, "llama_depth", expected)


def test_llama_depth_by_the_names_of_transformers() -> None:
    model = pair(
        "LlamaForCausalLM",
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=300,
    )[0]  # fmt: skip
    rows = {row.name: row for row in fastinit.plan(model, "llama_depth", strict=True).rows}
    for layer in range(3):
        for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
            stated = rows[f"model.layers.{layer}.{name}.weight"].distribution
            assert stated is not None
            assert stated.std() == pytest.approx(0.02 / math.sqrt(2.0 * (layer + 1)), rel=1e-12)
        gate = rows[f"model.layers.{layer}.mlp.gate_proj.weight"].distribution
        assert gate == distributions.Normal(0.0, 0.02)
    assert isinstance(rows["lm_head.weight"].distribution, distributions.TruncNormal)
    assert rows["model.embed_tokens.weight"].distribution == distributions.Normal(0.0, 1.0)


# Vision transformers with timm's names.


def vit_expected(mode: str, width: int, patch: int, classes: int) -> list[tuple[str, Law | None]]:
    def xavier(inputs: int, outputs: int) -> Law:
        return uniform(math.sqrt(6.0 / (inputs + outputs)))

    inputs = 3 * patch * patch
    tokens: list[tuple[str, Law | None]] = [
        (r"^(cls_token|reg_token)$", normal(1e-6)),
        (r"^pos_embed$", normal(0.02)),
        (r"norm\d?\.weight$", constant(1.0)),
    ]
    if mode == "":
        return [
            *tokens,
            (r"^patch_embed\.proj\.", uniform(inputs**-0.5)),
            (r"\.bias$", constant(0.0)),
            (r"\.weight$", normal(0.02)),
        ]
    matrices: list[tuple[str, Law | None]] = [
        (r"\.attn\.proj\.weight$", xavier(width, width)),
        (r"\.fc\d\.weight$", xavier(width, 4 * width)),
    ]
    if mode == "moco":
        return [
            *tokens,
            (r"^patch_embed\.proj\.", uniform(inputs**-0.5)),
            (r"\.bias$", constant(0.0)),
            (r"\.qkv\.weight$", xavier(width, width)),
            (r"^head\.weight$", xavier(width, classes)),
            *matrices,
        ]
    return [
        *tokens,
        (r"^patch_embed\.proj\.weight$", truncated(inputs**-0.5)),
        (r"^head\.bias$", constant(-math.log(classes) if mode == "jax_nlhb" else 0.0)),
        (r"^head\.weight$", constant(0.0)),
        (r"\.mlp\.\w+\.bias$", normal(1e-6)),
        (r"\.bias$", constant(0.0)),
        (r"\.qkv\.weight$", xavier(width, 3 * width)),
        *matrices,
    ]


MODES = ["", "jax", "jax_nlhb", "moco"]


def vit_preset(mode: str) -> str:
    return f"vit_{mode}" if mode else "vit"


@pytest.mark.parametrize("mode", MODES)
def test_vit(mode: str) -> None:
    model = zoo.VisionTransformer(width=128, depth=2, patch=8, classes=100)
    expected = [(r"\.gamma$", constant(1e-5)), *vit_expected(mode, 128, 8, 100)]
    check_preset(model, vit_preset(mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_vit_as_a_part_of_a_model(mode: str) -> None:
    model = zoo.VisionTransformer(width=64)
    alone = {row.name: row.distribution for row in fastinit.plan(model, vit_preset(mode)).rows}
    whole = nn.ModuleDict({"encoder": model})
    within = {row.name: row.distribution for row in fastinit.plan(whole, vit_preset(mode)).rows}
    assert within == {f"encoder.{name}": distribution for name, distribution in alone.items()}


@pytest.mark.zoo
@pytest.mark.parametrize("mode", MODES)
def test_vit_of_timm(mode: str) -> None:
    timm = library_of_models("timm")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(
            timm.create_model(
                "vit_tiny_patch16_224", weight_init=mode, depth=2, reg_tokens=4, img_size=64, num_classes=100
            )
        )
    check_preset(models[1], vit_preset(mode), vit_expected(mode, 192, 16, 100), models[0])


@pytest.mark.zoo
@pytest.mark.parametrize("init_values", [1e-5, 0.1])
def test_layer_scale_of_timm(init_values: float) -> None:
    timm = library_of_models("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, init_values=init_values, num_classes=10)
    check_preset(model, "vit", [(r"\.gamma$", constant(init_values)), *vit_expected("", 192, 16, 10)])


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_of_torchvision_and_timm(name: str) -> None:
    models = library_of_models("torchvision.models")
    last = r"^layer\d\.\d+\.bn3\.weight$" if name == "resnet50" else r"^layer\d\.\d+\.bn2\.weight$"
    for preset, zeros in (("resnet", True), ("resnet_plain", False)):
        torch.manual_seed(0)
        published = getattr(models, name)(zero_init_residual=zeros)
        model = getattr(models, name)(zero_init_residual=not zeros)
        check_preset(model, preset, resnet_expected(model, last if zeros else None), published)
    timm = library_of_models("timm")
    published, model = timm.create_model(name), timm.create_model(name)
    check_preset(model, "resnet", resnet_expected(model, last), published)


# Coverage: nothing of well-known models is left without a rule.


def on_cpu(build: Callable[[], Any]) -> Any:
    """The model with memory that nothing has touched: a plan writes nothing."""
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def transformers_model(kind: str, config: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(_transformers(), kind)._from_config(getattr(_transformers(), config)(**arguments))


COVERED: dict[str, tuple[Callable[[], Any], tuple[str, ...], int]] = {
    "GPT-2 XL": (
        transformers_model("GPT2LMHeadModel", "GPT2Config", n_layer=48, n_embd=1600, n_head=25),
        ("gpt2",),
        1_557_611_200,
    ),
    "ResNet-50": (lambda: zoo.ResNet(*zoo.RESNET50), ("resnet", "resnet_plain"), 25_557_032),
    "Llama": (
        transformers_model("LlamaForCausalLM", "LlamaConfig", num_hidden_layers=2, vocab_size=1000),
        ("llama", "llama_depth"),
        0,
    ),
    "T5": (transformers_model("T5ForConditionalGeneration", "T5Config", decoder_start_token_id=0), ("t5",), 60_506_624),
    "Mamba": (transformers_model("MambaForCausalLM", "MambaConfig", num_hidden_layers=4), ("mamba",), 0),
    "ViT": (transformers_model("ViTForImageClassification", "ViTConfig"), ("vit",), 0),
    "BERT": (transformers_model("BertForPreTraining", "BertConfig"), ("bert",), 0),
}


@pytest.mark.parametrize(("build", "names", "numel"), COVERED.values(), ids=COVERED.keys())
def test_every_parameter_is_covered(build: Callable[[], Any], names: tuple[str, ...], numel: int) -> None:
    model = on_cpu(build)
    count = sum(parameter.numel() for parameter in model.parameters())
    for scheme in ("xavier_uniform", *names):
        plan = fastinit.plan(model, scheme, fan="torch", strict=True)
        assert plan.uncovered == ()
        assert plan.numel == count and numel in (0, count)
        assert {row.action for row in plan.rows} <= {"init", "tied", "buffer"}


# What presets ask of a model.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t5", r"t5: expected d_model \(the width\)"),
        ("llama_depth", r"llama_depth: expected a model with output\.weight"),
        ("vit_jax_nlhb", r"vit: mode 'jax_nlhb': expected a model with head\.bias"),
        ("resnet", "resnet: zero_init_residual: expected a model with blocks that have bn3"),
        ("siren", "siren: expected a model with linear maps"),
    ],
)
@pytest.mark.parametrize("model", [None, nn.Sequential(nn.Conv1d(3, 3, 1))], ids=["no model", "another model"])
def test_presets_say_what_they_need(name: str, message: str, model: nn.Module | None) -> None:
    with pytest.raises(ValueError, match=message):
        fastinit.preset(name, model)
    if model is not None:
        before = model[0].weight.clone()  # type: ignore[index,operator]
        with pytest.raises(ValueError, match=message):
            fastinit.init_model_(model, name)
        assert torch.equal(model[0].weight, before)  # type: ignore[index,arg-type]


def test_t5_needs_the_width_of_a_head() -> None:
    with pytest.raises(ValueError, match="t5: expected d_kv"):
        presets.t5(d_model=64)
    assert presets.t5(d_model=64, d_kv=8).name == "t5"


@pytest.mark.parametrize("given", ["gpt-2", "gpt3", "resnet51"])
def test_unknown_presets(given: str) -> None:
    with pytest.raises(ValueError, match=rf"preset: got '{given}', did you mean '.*'\? expected one of gpt2, "):
        fastinit.preset(given)
    with pytest.raises(
        ValueError, match=rf"scheme: got '{given}', did you mean '.*'\? expected one of uniform, .* whisper"
    ):
        fastinit.init_model_(nn.Linear(2, 2), given)


def test_unknown_modes_of_vit() -> None:
    with pytest.raises(
        ValueError, match=r"mode: got 'jac', did you mean 'jax'\? expected one of , jax, jax_nlhb, moco"
    ):
        presets.vit(mode="jac")  # type: ignore[arg-type]


def test_presets_look_through_wrappers() -> None:
    model = pair("T5ForConditionalGeneration", initializer_factor=0.3, **T5)[0]
    alone = fastinit.plan(model, "t5").rows
    wrapped = fastinit.plan(nn.DataParallel(model), "t5").rows
    assert [(row.name, row.distribution) for row in wrapped] == [(row.name, row.distribution) for row in alone]
    vit = zoo.VisionTransformer(width=64)
    head = next(row for row in fastinit.plan(nn.DataParallel(vit), "vit_jax_nlhb").rows if row.name == "head.bias")
    assert head.distribution == distributions.Constant(-math.log(100))
    resnet = nn.DataParallel(zoo.ResNet(zoo.BasicBlock, (1, 1), width=8))
    zeros = [
        row.name for row in fastinit.plan(resnet, "resnet").rows if row.distribution == distributions.Constant(0.0)
    ]
    assert {"layer1.0.bn2.weight", "layer2.0.bn2.weight"} < set(zeros)


@pytest.mark.parametrize("name", fastinit.preset_names())
def test_presets_state_their_source(name: str) -> None:
    made = {
        "t5": lambda: presets.t5(d_model=8, d_kv=4),
        "llama_depth": lambda: fastinit.preset(name, zoo.Llama(32, 1)),
        "vit_jax_nlhb": lambda: fastinit.preset(name, zoo.VisionTransformer(32, 1)),
        "resnet": lambda: fastinit.preset(name, zoo.ResNet(*zoo.RESNET18, width=8)),
        "siren": lambda: fastinit.preset(name, Sines()),
    }.get(name, lambda: fastinit.preset(name))()
    assert made.name == name and made.source


@pytest.mark.parametrize("name", fastinit.preset_names())
@pytest.mark.parametrize("model", [3, "model", nn.Linear], ids=str)
def test_what_is_no_model_is_refused(name: str, model: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got (int|str|type)$"):
        fastinit.preset(name, model)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastinit.presets.t5(d_model="a", d_kv=2), TypeError, "d_model: expected a number, got 'a'"),
        (lambda: fastinit.presets.t5(d_model=4, d_kv=0), ValueError, "d_kv: expected d_kv > 0, got 0"),
        (lambda: fastinit.presets.t5(d_model=4, d_kv=2, factor=math.inf), ValueError, "factor: expected factor > 0"),
        (lambda: fastinit.presets.t5(d_model=True, d_kv=2), TypeError, "d_model: expected a number, got True"),
        (lambda: fastinit.presets.gpt2(std="a"), TypeError, "std: expected a number, got 'a'"),
        (lambda: fastinit.presets.vit(mode=None), ValueError, "mode: expected one of"),
        (lambda: fastinit.presets.resnet(zero_init_residual="no"), TypeError, "zero_init_residual: expected True or"),
        (lambda: fastinit.presets.siren(Sines(), omega=0), ValueError, "omega: expected omega > 0, got 0"),
        (lambda: fastinit.presets.convnext(layer_scale="a"), TypeError, "value: expected a number, got 'a'"),
        (lambda: fastinit.preset(3), ValueError, "preset: expected one of"),
        (lambda: fastinit.plan(nn.Linear(2, 2), 3), TypeError, "scheme: expected"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()
