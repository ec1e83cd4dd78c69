"""`python -m fastinit demo` runs, on small models; and its larger one needs no more memory under fused()."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from fastinit import _native
from fastinit.cli import demo
from fastinit.cli.demo import Llama, Size


def small(kind: type[nn.Module] = Llama) -> nn.Module:
    return kind(layers=1, width=16, hidden=24, vocabulary=50)


def test_the_demo_prints_all_its_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("run_construction", "run_threads"):
        monkeypatch.setattr(demo, part, partial(getattr(demo, part), small))
    demo.run(Size(layers=2, width=64, heads=4, vocabulary=500, context=16))
    printed = capsys.readouterr().out
    assert re.search(r"fastinit is [\d.]+ times as fast as the loop", printed)
    assert re.search(r"^as it is +[\d.]+ +(\d+|nan)$", printed, re.MULTILINE)
    assert re.search(r"^with fastinit\.fused\(\) +[\d.]+ +(\d+|nan)$", printed, re.MULTILINE)
    deviations = re.findall(r"([+-][\d.]+)%$", printed, re.MULTILINE)
    assert len(deviations) == 4 and all(abs(float(each)) < 5.0 for each in deviations)
    assert re.search(r"^blocks\.\{0,1\}\.qkv\.weight +Linear +192x64 ", printed, re.MULTILINE)
    prints = re.findall(r"^[12] threads? +fingerprint ([0-9a-f]{16})$", printed, re.MULTILINE)
    assert len(prints) == 2 and (prints[0] == prints[1]) == ("Equal, to the bit." in printed)
    if _native.module is not None:
        assert prints[0] == prints[1]
    assert re.search(r"^ +\de-\d\d \|", printed, re.MULTILINE) and "\n* Normal(std=0.05)\n" in printed


def test_the_model_of_the_demo_is_the_same_under_fused() -> None:
    torch.manual_seed(0)
    plain, fused = small(), demo.build_fused(small)
    assert fused.lm_head.weight is fused.embed_tokens.weight
    shapes = [[(name, each.shape) for name, each in model.named_parameters()] for model in (plain, fused)]
    assert shapes[0] == shapes[1]
    for name, each in fused.named_parameters():
        if "norm" in name:
            assert (each == 1.0).all(), name
        else:
            assert each.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.slow
def test_building_under_fused_needs_no_more_memory() -> None:
    # In a process of its own: memory that other tests have left would be used again, and not count.
    code = (
        "from fastinit.cli import demo\n"
        "print(demo._most_memory(lambda: demo.build_fused(demo.Llama)), demo._most_memory(demo.Llama))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fused, plain = map(float, done.stdout.split())
    if math.isnan(plain):
        pytest.skip("this system does not tell how much memory a process has had")
    assert 100.0 < fused <= plain
