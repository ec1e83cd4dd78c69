"""What others fell into: for every trap the naive way, which fails here, and ours, which does not."""

from __future__ import annotations

import math
from hashlib import sha1
from pathlib import Path

import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit.rules.lists import plan_tensors
from fastinit.run.index_maps import BoxIndices
from fastinit.run.streams import name_id
from fastinit.run.table import Table
from fastinit.run.targets import Target
from fastinit.run.torch_source import haar_by_factorisation

BF16 = torch.bfloat16


def filled(
    scheme: str | fastinit.Scheme, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    fastinit.init_([tensor], scheme, seed=seed)
    return tensor


# ---- Numerics ----


@needs_native
def test_truncated_normal_through_the_inverse_error_function_in_low_precision() -> None:
    def naive(tensor: torch.Tensor, std: float, low: float, high: float) -> torch.Tensor:
        def cdf(x: float) -> float:
            return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))

        tensor.uniform_(2 * cdf(low / std) - 1, 2 * cdf(high / std) - 1).erfinv_()
        return tensor.mul_(std * math.sqrt(2.0)).clamp_(low, high)

    torch.manual_seed(0)
    wrong = naive(torch.empty(1_000_000, dtype=BF16), 0.02, -2.0, 2.0)
    assert wrong.double().std() > 0.04 and (wrong.abs() == 2.0).sum() > 100
    right = filled(fastinit.TruncNormal(std=0.02, bounds=(-2.0, 2.0)), 1_000_000, dtype=BF16)
    assert right.double().std() == pytest.approx(0.02, rel=0.004) and right.abs().max() < 0.13


@needs_native
def test_bounds_read_as_absolute_where_multiples_of_sigma_were_meant() -> None:
    sigma = math.sqrt(1.0 / 1000) / 0.87962566103423978
    torch.manual_seed(0)
    wrong = nn.init.trunc_normal_(torch.empty(1000, 1000), std=sigma, a=-2.0, b=2.0)
    assert wrong.std() == pytest.approx(1.137 * math.sqrt(1e-3), rel=0.01)
    right = filled("lecun_normal", 1000, 1000)
    assert right.std() == pytest.approx(math.sqrt(1e-3), rel=0.004) and right.abs().max() <= 2.0 * sigma
    # The published std = 0.02 within +-2 truncates nothing; in sigma it does.
    assert filled(fastinit.TruncNormal(std=0.02, bounds=(-2, 2), unit="sigma"), 10**5).abs().max() <= 0.04


@needs_native
def test_sampling_in_the_target_dtype() -> None:
    uniforms = torch.arange(1, 256, dtype=torch.float64) / 256  # what eight bits of a bfloat16 uniform can be
    wrong = torch.special.ndtri(uniforms).to(BF16)
    assert wrong.unique().numel() < 260 and wrong.abs().max() < 3.0
    right = filled("normal", 1_000_000, dtype=BF16)
    assert right.unique().numel() > 2000 and right.abs().max() > 4.5


@needs_native
@pytest.mark.parametrize(("dtype", "bound"), [(BF16, 0.1), (torch.float16, 0.3)])  # whose nearest lies beyond
def test_rounding_past_a_bound_and_a_mean_shifted_by_one_open_end(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    wrong = torch.rand(1_000_000).mul_(2 * bound).sub_(bound).to(dtype)
    assert wrong.double().abs().max() > bound
    right = filled(fastinit.Uniform(-bound, bound), 1_000_000, dtype=dtype).double()
    assert right.max() <= bound and right.min() >= -bound and right.max() == -right.min()
    assert abs(right.mean()) < 4.0 * bound / math.sqrt(3e6)
    truncated = filled(fastinit.TruncNormal(std=bound, bounds=(-bound, bound)), 1_000_000, dtype=dtype).double()
    assert truncated.max() <= bound and truncated.max() == -truncated.min()


@needs_native
def test_rejection_draws_as_many_numbers_as_it_happens_to_need() -> None:
    """torch's sampler loops until none is rejected; here element i takes fixed words, and can be had alone."""
    torch.manual_seed(0)
    whole = nn.init.trunc_normal_(torch.empty(1000))
    torch.manual_seed(0)
    assert not torch.equal(nn.init.trunc_normal_(torch.empty(900)), whole[:900])
    ours = filled(fastinit.TruncNormal(), 1000)
    for index in (0, 1, 517, 999):
        alone = torch.empty(1)
        distribution = plan_tensors([alone], fastinit.TruncNormal()).rows[0].distribution
        assert distribution is not None
        target = Target("0", alone, alone.shape, alone.dtype, alone.device, distribution, BoxIndices(index, (1,)))
        Table([target]).fill_cpu(0, 1)
        assert alone[0] == ours[index]


def test_a_factorisation_without_sign_correction_is_not_haar() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(2000, 3, 3, generator=generator)
    wrong = torch.linalg.qr(normals).Q[:, 0, 0]
    right = torch.stack([haar_by_factorisation(matrix, 1.0) for matrix in normals])[:, 0, 0]
    assert (wrong <= 0.0).all()  # LAPACK's reflectors leave one sign
    assert 0.45 < (right > 0.0).float().mean() < 0.55
    # The first entry of a Haar matrix of order three is uniform on [-1, 1].
    assert right.square().mean() == pytest.approx(1 / 3, rel=4 * math.sqrt(0.8 / 2000))


def test_sign_of_zero_zeroes_a_column() -> None:
    degenerate = torch.zeros(4, 4)
    degenerate[:, 0] = 1.0
    q, r = torch.linalg.qr(degenerate)
    assert ((q * r.diagonal().sign()).norm(dim=0) == 0.0).any()
    right = haar_by_factorisation(degenerate, 1.0)
    torch.testing.assert_close(right.mT @ right, torch.eye(4))


@needs_native
def test_streams_that_change_with_length_layout_and_dtype() -> None:
    torch.manual_seed(0)
    fifteen = torch.empty(15).normal_()
    torch.manual_seed(0)
    assert not torch.equal(torch.empty(16).normal_()[:15], fifteen)
    whole = filled("normal", 64, 8)
    for length in (1, 3, 15, 16, 17, 100, 511):
        assert torch.equal(filled("normal", length), whole.flatten()[:length])
    transposed = torch.empty(8, 64).t()
    fastinit.init_([transposed], "normal", seed=0)
    assert torch.equal(transposed, whole)
    # Sampled in float32 and rounded once, whatever 16-bit dtype it is for.
    assert torch.equal(filled("normal", 64, 8, dtype=BF16), whole.to(BF16))
    assert torch.equal(filled("normal", 64, 8, dtype=torch.float16), whole.to(torch.float16))


# ---- Fans ----


def std_of(module: nn.Module, name: str, fan: str, scheme: str = "lecun_normal") -> float:
    rows = {row.name: row for row in fastinit.plan(module, scheme, fan=fan).rows}  # type: ignore[arg-type]
    distribution = rows[name].distribution
    assert distribution is not None
    return distribution.std()


def fans_of(module: nn.Module, name: str, fan: str) -> tuple[int, int]:
    rows = {row.name: row for row in fastinit.plan(module, "xavier_normal", fan=fan).rows}  # type: ignore[arg-type]
    fans = rows[name].fans
    assert fans is not None
    return tuple(fans)


class Experts(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Conv1D(nn.Module):
    """GPT-2's: the weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))


@pytest.mark.parametrize(
    ("module", "name", "naive", "wanted"),
    [
        (nn.Conv2d(64, 64, 3, groups=64), "weight", (9, 576), (9, 9)),
        (nn.ConvTranspose2d(16, 32, 3), "weight", (288, 144), (144, 288)),
        (Experts(8, 64, 128), "weight", (8192, 1024), (128, 64)),
        (nn.MultiheadAttention(96, 4), "in_proj_weight", (96, 288), (96, 96)),
        (nn.LSTM(10, 20), "weight_hh_l0", (20, 80), (20, 20)),
        (nn.GRU(10, 20), "weight_ih_l0", (10, 60), (10, 20)),
        (nn.Embedding(50_000, 64), "weight", (64, 50_000), (64, 64)),
        (Conv1D(48, 16), "weight", (48, 16), (16, 48)),
        (nn.Bilinear(3, 4, 5), "weight", (12, 20), (12, 5)),
    ],
)
def test_fans_read_off_the_shape(module: nn.Module, name: str, naive: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert nn.init._calculate_fan_in_and_fan_out(module.get_parameter(name)) == naive
    assert fans_of(module, name, "module") == wanted


def test_a_fused_projection_has_the_std_of_its_parts() -> None:
    fused, single = nn.Linear(64, 2 * 256), nn.Linear(64, 256)
    row = fastinit.plan(fused, "zeros", rules=[fastinit.Rule("weight", "xavier_normal", split=2)]).rows[0]
    assert row.distribution is not None
    assert std_of(fused, "weight", "torch", "xavier_normal") < 0.8 * std_of(single, "weight", "torch", "xavier_normal")
    assert row.distribution.std() == std_of(single, "weight", "torch", "xavier_normal")


def test_a_shard_has_the_fans_of_the_whole() -> None:
    """LoRA's A under tensor parallelism: a quarter of the columns is no smaller fan."""
    shard = nn.Linear(256, 8, bias=False)  # of 1024 inputs
    wrong = fastinit.plan(shard, "kaiming_uniform").rows[0].distribution
    right = fastinit.plan(shard, "kaiming_uniform", fan=fastinit.Fans(1024, 8)).rows[0].distribution
    assert wrong is not None and right is not None
    assert wrong.std() == pytest.approx(2.0 * right.std()) and right.std() == pytest.approx(math.sqrt(2.0 / 1024))


# ---- Semantics ----


class GemmaRMSNorm(nn.Module):
    """Computes x * (1 + weight)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1.0 + self.weight)


def test_a_norm_that_adds_one_to_its_weight_begins_as_one() -> None:
    norm = fastinit.init_model_(GemmaRMSNorm(), "normal")
    assert torch.equal(norm(torch.ones(6)), torch.ones(6))


def test_state_spaces_rotary_buffers_and_statistics_are_no_matrices_and_biases() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(torch.rand(6, 4))
            self.D = nn.Parameter(torch.rand(6))
            self.dt_proj = nn.Linear(2, 6)
            self.norm = nn.BatchNorm1d(6)
            self.register_buffer("inv_freq", torch.arange(3.0))

    mixer = Mixer()
    mixer.norm.running_mean.fill_(3.0)
    fastinit.init_model_(mixer, "xavier_uniform", seed=0, strict=True)
    torch.testing.assert_close(mixer.A_log, torch.arange(1.0, 5.0).log().expand(6, 4))
    assert (mixer.D == 1.0).all()
    steps = nn.functional.softplus(mixer.dt_proj.bias)
    assert (steps > 0.00099).all() and (steps < 0.101).all() and steps.unique().numel() == 6
    assert torch.equal(mixer.inv_freq, torch.arange(3.0)) and (mixer.norm.running_mean == 3.0).all()


def test_to_empty_destroys_buffers_and_unties_weights_and_the_plan_shows_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("table", torch.arange(4.0))

    assert [row.action for row in fastinit.plan(Tied(), "normal").rows] == ["buffer", "init", "tied"]
    with torch.device("meta"):
        model = Tied()
    emptied = fastinit.plan(model.to_empty(device="cpu"), "normal")
    assert [row.action for row in emptied.rows] == ["buffer", "init", "init"]
    assert "buffers, kept: table" in emptied.summary()


def test_the_padding_row_of_a_distributed_tensor_is_zero(tmp_path: Path) -> None:
    """On a CPU mesh normal_ gives every rank the same shard, and weight[row].zero_() does nothing."""
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Embedding(8, 4, padding_idx=1)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]))
        fastinit.init_model_(model, "ones", seed=0)
        assert model.weight.to_local().sum(1).tolist() == [4.0, 0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    finally:
        distributed.destroy_process_group()


def test_replicas_are_equal_whatever_their_generators_hold() -> None:
    replicas = []
    for rank in range(2):
        torch.manual_seed(rank)
        replicas.append(fastinit.init_model_(nn.Linear(8, 8), "kaiming_normal", seed=1).weight)
    assert torch.equal(*replicas)


def test_writing_to_a_parametrised_weight_does_nothing() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    before = linear.weight.clone()
    nn.init.ones_(linear.weight)
    assert torch.equal(linear.weight, before)
    fastinit.init_model_(linear, "ones")
    torch.testing.assert_close(linear.weight, torch.ones(5, 6))


def test_rescaling_passes_compound() -> None:
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(8))})

    def naive() -> None:
        for parameter in model.parameters():
            with torch.no_grad():
                parameter /= math.sqrt(16.0)

    plan = fastinit.plan(model, fastinit.DepthScaled(fastinit.Normal(std=0.02)), seed=0)
    plan.run_()
    once = [parameter.clone() for parameter in model.parameters()]
    naive()
    assert not torch.equal(once[0], next(iter(model.parameters())))
    plan.run_()
    plan.run_()
    assert all(torch.equal(first, again) for first, again in zip(once, model.parameters(), strict=True))
    assert once[0].detach().std() == pytest.approx(0.02 / 4.0, rel=0.4)


def test_one_seed_for_several_layers_gives_equal_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for layer in model:
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(5))
    assert torch.equal(model[0].weight, model[1].weight)
    fastinit.init_model_(model, "normal", seed=5)
    assert not torch.equal(model[0].weight, model[1].weight)


@pytest.mark.slow
def test_32_bit_hashes_of_names_collide() -> None:
    names = [
        f"layers.{layer}.experts.{expert}.{part}" for layer in range(128) for expert in range(512) for part in "uvw"
    ]
    assert len({sha1(name.encode()).digest()[:4] for name in names}) < len(names)
    assert len({name_id(name)[:8] for name in names}) == len({name_id(name)[8:] for name in names}) == len(names)


@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")
def test_loaded_weights_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    loaded = model[0].weight.detach().clone()
    for parameter in model[0].parameters():
        parameter._is_hf_initialized = True  # what transformers marks loaded weights with
    plan = fastinit.plan(model, "ones", strict=True)
    plan.run_()
    assert torch.equal(model[0].weight, loaded) and (model[1].weight == 1.0).all()
    fastinit.init_model_(model, "zeros", rules=[("0.weight", "ones")])
    assert (model[0].weight == 1.0).all()


def test_matching_substrings_of_names_scales_biases_too() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    fastinit.init_model_(model, fastinit.deepnorm(model), seed=0)
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    assert len(biases) == 12 and all((bias == 0.0).all() for bias in biases)


# ---- torch itself ----


def test_empty_tensors() -> None:
    with pytest.raises(ZeroDivisionError):
        nn.init.xavier_uniform_(torch.empty(0, 0))
    for shape in ((0, 0), (0, 5), (5, 0)):
        for name in ("xavier_uniform", "xavier_normal", "lecun_normal", "orthogonal", "normal", "eye"):
            tensor = torch.empty(shape)
            fastinit.init_([tensor], name)
    with pytest.warns(UserWarning, match="zero-element"):
        fastinit.kaiming_uniform_(torch.empty(0, 5))


def test_sparse_forgets_its_generator() -> None:
    def zeros(function: object, seed: int) -> torch.Tensor:
        assert callable(function)
        found = function(torch.empty(30, 4), 0.5, generator=torch.Generator().manual_seed(7))
        assert isinstance(found, torch.Tensor)
        torch.manual_seed(seed)
        return found == 0

    torch.manual_seed(0)
    assert not torch.equal(zeros(nn.init.sparse_, 1), zeros(nn.init.sparse_, 2))
    torch.manual_seed(0)
    assert torch.equal(zeros(fastinit.sparse_, 1), zeros(fastinit.sparse_, 2))


def test_orthogonal_in_bfloat16_and_in_strides() -> None:
    with pytest.raises(RuntimeError):
        nn.init.orthogonal_(torch.empty(6, 6, dtype=BF16))
    with pytest.raises(RuntimeError):
        nn.init.orthogonal_(torch.empty(6, 4, 3, 3).to(memory_format=torch.channels_last))
    plain = filled("orthogonal", 6, 6)
    assert torch.equal(filled("orthogonal", 6, 6, dtype=BF16), plain.to(BF16))
    strided = torch.empty(6, 12)[:, ::2]
    fastinit.init_([strided], "orthogonal", seed=0)
    assert torch.equal(strided, plain)
    channels_last = torch.empty(6, 4, 3, 3).to(memory_format=torch.channels_last)
    fastinit.init_([channels_last], "orthogonal", seed=0)
    rows = channels_last.reshape(6, -1)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(6))
