"""The command line: what it prints, its exit codes, and the files that it writes and checks."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import needs_native, needs_peaks
from peaks import PEAKS
from torch import nn

import fastinit
from fastinit.cli import bench, commands, disk, files, writing
from fastinit.cli.architectures import ARCHITECTURES

# By the models' own publications and cards, tied embeddings counted once.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
}


class Small(nn.Module):
    """Parameters of each kind of treatment, a tie, and buffers of which one is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.wide = nn.Linear(12, 600)
        self.norm = nn.BatchNorm1d(600)
        self.square = nn.Linear(16, 16)
        self.table = nn.Parameter(torch.linspace(0.0, 1.0, 7))
        self.head = nn.Linear(12, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("position_ids", torch.arange(9))
        self.register_buffer("scratch", torch.ones(3), persistent=False)


def number() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("on purpose")


SMALL = f"{__name__}:Small"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = commands.main([str(each) for each in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_models_have_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    assert sum(each.numel() for each in model.parameters()) == PARAMETERS[name]
    assert ARCHITECTURES[name].source


@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("gpt2", "gpt2", {}),
        (
            "llama-3.2-1b",
            "llama",
            {
                "num_hidden_layers": 16,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "vocab_size": 128256,
                "tie_word_embeddings": True,
            },
        ),
    ],
)
def test_published_models_have_the_names_and_shapes_of_transformers(name: str, kind: str, sizes: Any) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        ours = ARCHITECTURES[name].build()
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**sizes))
    assert {key: value.shape for key, value in ours.named_parameters()} == {
        key: value.shape for key, value in theirs.named_parameters()
    }


def test_info_is_printed_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "info")
    assert code == 0 and f"fastinit: {fastinit.__version__}" in re.sub(" +", " ", text)
    code, text, _ = run(capsys, "info", "--json")
    assert code == 0 and json.loads(text)["fastinit"] == fastinit.__version__


def test_a_plan_is_that_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "plan", SMALL, "--scheme", "xavier_uniform", "--seed", 3)
    with fastinit.deferred():
        model = Small()
    assert code == 0 and text == f"{fastinit.plan(model, 'xavier_uniform', seed=3)}\n"
    code, text, _ = run(capsys, "plan", "gpt2", "--json", "--filter", "*.h.0.attn.*", "--dtype", "bfloat16")
    said = json.loads(text)
    assert code == 0 and (said["scheme"], said["seed"], len(said["rows"])) == ("gpt2", 0, 4)
    assert {row["dtype"] for row in said["rows"]} == {"bfloat16"}


def test_a_model_in_a_file_and_rules_in_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code_file, recipe = tmp_path / "code_of_a_user.py", tmp_path / "recipe.toml"
    code_file.write_text("import torch\ndef make():\n    return torch.nn.Linear(3, 2)\n")
    recipe.write_text('scheme = "xavier_normal"\n[[rules]]\nname = "bias"\nscheme = "ones"\n')
    code, text, _ = run(capsys, "plan", f"{code_file}:make", "--rules", recipe, "--json")
    schemes = {row["name"]: row["distribution"] for row in json.loads(text)["rows"]}
    assert code == 0 and schemes["bias"] == "1" and schemes["weight"].startswith("N(0, ")


@needs_native
def test_a_config_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    sizes = {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 20, "n_positions": 4}
    config.write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}))
    out = tmp_path / "model.safetensors"
    code, text, _ = run(capsys, "init", config, "--out", out)
    assert code == 0 and "lm_head.weight is tied to transformer.wte.weight" in text
    config.unlink()  # the file has all that is needed
    assert run(capsys, "verify", out)[0] == 0


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("scheme", ["own", "kaiming_normal", "orthogonal"])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_a_file_holds_what_is_initialised_in_memory(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str | None,
    scheme: str,
    shard_size: str,
) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    monkeypatch.setattr(writing, "_BUFFER_BYTES", 8 * 1024)  # tensors in pieces, and several in a buffer
    out = tmp_path / "model.safetensors"
    options = [] if dtype is None else ["--dtype", dtype]
    options += ["--scheme", scheme, "--shard-size", shard_size, "--seed", "5", "--json"]
    code, text, _ = run(capsys, "init", SMALL, "--out", out, *options)
    said = json.loads(text)
    assert code == 0 and (len(said["files"]) > 1) == (shard_size == "20KB")
    found = {name: value for file in said["files"] for name, value in torch_files.load_file(file).items()}
    with fastinit.deferred():
        model = Small()
    as_dtype = None if dtype is None else getattr(torch, dtype)
    fastinit.materialize_(model, scheme, device="cpu", dtype=as_dtype, seed=5)
    expected = model.state_dict()
    assert expected.pop("head.weight") is not None and "scratch" not in expected
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert said["tied"] == {"head.weight": "embed.weight"}
    assert said["fingerprint"] == f"{fastinit.fingerprint(model):016x}"
    with pytest.importorskip("safetensors").safe_open(said["files"][0], "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt" and metadata["fastinit.fingerprint"] == said["fingerprint"]
    assert (metadata["fastinit.seed"], metadata["fastinit.scheme"]) == ("5", scheme)
    if said["index_file"] is not None:
        index = json.loads(Path(said["index_file"]).read_text())
        assert index["weight_map"].keys() == found.keys()
        assert index["metadata"]["total_size"] == said["nbytes"]
        assert index["metadata"]["fastinit.fingerprint"] == said["fingerprint"]
    assert not list(tmp_path.glob("*.part"))


@needs_native
def test_verify_finds_one_changed_byte_and_a_changed_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    assert run(capsys, "init", SMALL, "--out", out)[0] == 0
    code, text, _ = run(capsys, "verify", out, "--model", SMALL)
    assert code == 0 and "hold the values" in text
    whole, header = out.read_bytes(), files.read_header(out)
    for name, problem in {
        "wide.weight": "wide.weight: has other values",
        "position_ids": "position_ids: has other values",
        "table": "table: has other values",
    }.items():
        damaged = bytearray(whole)
        damaged[header.begins[name]] ^= 1
        out.write_bytes(damaged)
        code, text, _ = run(capsys, "verify", out, "--model", SMALL, "--json")
        assert code == 1 and problem in json.loads(text)["problems"]
    out.write_bytes(whole.replace(b'"fastinit.seed":"0"', b'"fastinit.seed":"1"'))
    code, text, _ = run(capsys, "verify", out, "--model", SMALL)
    assert code == 1 and "wide.weight: has other values" in text and "not as promised" in text
    fingerprint = header.metadata["fastinit.fingerprint"].encode()
    out.write_bytes(whole.replace(fingerprint, b"0" * 16))
    code, text, _ = run(capsys, "verify", out, "--model", SMALL)
    assert code == 1 and "fingerprint: the metadata say 0000000000000000" in text


@needs_native
def test_verify_of_shards_finds_a_missing_one_and_takes_one_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    run(capsys, "init", SMALL, "--out", out, "--shard-size", "10KB")
    index = tmp_path / "model.safetensors.index.json"
    assert run(capsys, "verify", index, "--model", SMALL)[0] == 0
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    code, text, _ = run(capsys, "verify", shards[1], "--model", SMALL)
    assert code == 0 and "a part of the model" in text
    data = json.loads(index.read_text())
    data["weight_map"] = {name: file for name, file in data["weight_map"].items() if file != shards[1].name}
    index.write_text(json.dumps(data))
    code, text, _ = run(capsys, "verify", index, "--model", SMALL)
    assert code == 1 and "is missing" in text


@needs_native
def test_code_that_a_file_names_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.safetensors"
    run(capsys, "init", SMALL, "--out", out)
    code, _, error = run(capsys, "verify", out)
    assert code == 2 and f"--model {SMALL}" in error


@pytest.mark.slow
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, text_file, recipe = tmp_path / "a.safetensors", tmp_path / "text.safetensors", tmp_path / "recipe.toml"
    text_file.write_text("no safetensors file, but some text")
    recipe.write_text('scheme = "no such"\n')
    (tmp_path / "config.json").write_text('{"model_type": 3}')
    mistakes = {
        "got 'no-such'": ["plan", "no-such"],
        "cannot import 'no_such'": ["plan", "no_such:model"],
        f"{__name__!r} has no 'Absent'": ["plan", f"{__name__}:Absent"],
        "to return a torch.nn.Module, got int": ["plan", f"{__name__}:number"],
        "RuntimeError: on purpose": ["plan", f"{__name__}:failing"],
        "--rules: ": ["plan", "gpt2", "--rules", recipe],
        "--filter: ": ["plan", "gpt2", "--filter", "nothing"],
        "no such scheme": ["plan", "gpt2", "--scheme", "no such scheme"],
        "with a model_type": ["plan", tmp_path / "config.json"],
        "cannot read": ["plan", tmp_path / "absent.json"],
        "ends in .safetensors": ["init", SMALL, "--out", tmp_path / "a.bin"],
        "there is no folder": ["init", SMALL, "--out", tmp_path / "absent" / "a.safetensors"],
        "is no safetensors file": ["report", text_file],
        "No such file": ["verify", out],
    }
    for message, arguments in mistakes.items():
        code, printed, error = run(capsys, *arguments)
        assert (code, printed) == (2, ""), arguments
        assert message in error and error.startswith("fastinit: ") and error.count("\n") == 1, error
    for arguments in (["plan"], ["plan", "gpt2", "--seed", "x"], ["nothing"], ["bench", "--mib", "0"]):
        assert run(capsys, *arguments)[0] == 2
    assert run(capsys, "init", SMALL, "--out", out)[0] == 0
    assert "--force" in run(capsys, "init", SMALL, "--out", out)[2]
    assert run(capsys, "init", SMALL, "--out", out, "--force")[0] == 0
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    assert "has 0.0 GB left" in run(capsys, "init", "gpt2", "--out", tmp_path / "b.safetensors")[2]


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.Blocks, "write", refuse)
    code, _, error = run(capsys, "init", SMALL, "--out", tmp_path / "a.safetensors")
    assert code == 2 and "No space left on device" in error
    assert not list(tmp_path.iterdir())


class Hesitant(FileIO):
    """Takes one block of what it is given, and then refuses once: a file system that has no direct way after all."""

    refusals = 1

    def write(self, data: Any, /) -> int:
        if self.tell() == 0 and len(data) > disk.BLOCK:
            return super().write(memoryview(data)[: disk.BLOCK])
        if self.refusals:
            self.refusals = 0
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().write(data)


@pytest.mark.parametrize("refused", ["nothing", "the flag", "a write"])
@pytest.mark.parametrize("nbytes", [0, 1, disk.BLOCK - 1, disk.BLOCK, 3 * disk.BLOCK + 5])
def test_a_file_has_its_bytes_past_the_cache_and_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, refused: str
) -> None:
    def refuse(*_: object) -> bool:
        raise OSError(errno.EINVAL, "Invalid argument")

    if refused == "the flag":
        monkeypatch.setattr(disk, "_pass_cache", refuse)
    if refused == "a write":
        monkeypatch.setattr(disk, "_pass_cache", lambda _, on: on)
    data = disk.aligned(nbytes)
    data.copy_(torch.arange(nbytes) % 251)
    whole = nbytes - nbytes % disk.BLOCK
    with Hesitant(tmp_path / "a", "wb") if refused == "a write" else (tmp_path / "a").open("wb", buffering=0) as file:
        blocks = disk.Blocks(file)
        blocks.write(data[:whole])
        blocks.finish(data[whole:])
    assert (tmp_path / "a").read_bytes() == data.numpy().tobytes()


def test_a_write_that_is_refused_for_another_reason_fails(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with (tmp_path / "a").open("rb", buffering=0) as file, pytest.raises(OSError, match="writing"):
        disk.Blocks(file).write(disk.aligned(disk.BLOCK))


def test_report_counts_what_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    torch_files.save_file({"x": torch.tensor([1.0, 3.0, 0.0, 0.0]), "n": torch.arange(3)}, path)
    code, text, _ = run(capsys, "report", path, "--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert code == 0 and rows["x"]["mean"] == 1.0 and rows["x"]["std"] == pytest.approx(1.5**0.5)
    assert (rows["x"]["zeros"], rows["x"]["least"], rows["x"]["largest"], rows["n"]["mean"]) == (2, 0.0, 3.0, 1.0)
    torch_files.save_file({"x": torch.complex(torch.ones(4), torch.tensor([5.0, 5.0, 0.0, 0.0]))}, path)
    (row,) = json.loads(run(capsys, "report", path, "--json")[1])
    assert (row["mean"], row["least"], row["largest"], row["zeros"]) == (1.75, 0.0, 5.0, 2)
    torch_files.save_file({"x": torch.tensor([1.0, float("nan"), float("inf")])}, path)
    code, text, _ = run(capsys, "report", path)
    assert code == 1 and text.rstrip().endswith(" 2")


def test_bench_measures_every_fill(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, _ = run(capsys, "bench", "--mib", 1, "--json")
    measured = json.loads(text)
    assert code == 0 and len(measured) == 7 and all(each["fastinit_seconds"] > 0.0 for each in measured)
    monkeypatch.setattr(bench, "run", lambda mib: [bench.Measured("a fill", 8, 0.3, 0.1, 0.05)])
    assert re.search(r"^a fill +300\.0 +100\.0 +50\.0 +3\.0$", run(capsys, "bench")[1], re.MULTILINE)


@pytest.mark.parametrize("command", [[], ["info"], ["plan"], ["init"], ["verify"], ["report"], ["bench"], ["demo"]])
def test_help_is_printed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, *command, "--help")
    assert code == 0 and "usage: fastinit" in text
    assert "examples:" in text or command not in ([], ["plan"], ["init"], ["verify"])


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m fastinit plan gpt2 | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout.split()[-1] == "0" and "Traceback" not in done.stderr


@needs_native
@needs_peaks
@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    code = (
        f"{PEAKS}"
        "from fastinit.cli.commands import main\n"
        "assert main(['init', sys.argv[1], '--dtype', 'bfloat16', '--out', sys.argv[2]]) == 0\n"
        "print(peak_memory())\n"
    )

    def most(model: str) -> float:
        command = [sys.executable, "-c", code, model, str(tmp_path / f"{model}.safetensors")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) / 2**20

    small, large = most("gpt2"), most("gpt2-medium")  # 250 and 710 MB
    assert large < small + 100.0
