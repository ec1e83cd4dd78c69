"""The commands of `fastinit` (and of `python -m fastinit`): their arguments, what they print, and their exit codes."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from fastinit.cli import bench, checking, demo, info, models, statistics, writing
from fastinit.cli.architectures import ARCHITECTURES
from fastinit.cli.mistakes import Mistake
from fastinit.run.streams import as_seed

_OK, _FAILED, _MISTAKE, _INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\
examples:
  fastinit info
  fastinit plan gpt2
  fastinit plan mypackage.models:make_model --scheme xavier_uniform
  fastinit init llama-3.2-3b --dtype bfloat16 --seed 0 --out model.safetensors
  fastinit verify model.safetensors

exit codes: 0 all is well; 1 a check failed; 2 a mistake on the command line or in a file that it names
"""
_MODEL = """\
MODEL is one of
  a published architecture: {}
  a path to the config.json of a transformers model (needs transformers; nothing is downloaded)
  module:callable, or file.py:callable: a class or function that builds a model without arguments
"""
_PLAN_EPILOG = """
examples:
  fastinit plan gpt2-xl
  fastinit plan config.json --scheme own
  fastinit plan train.py:make_model --scheme kaiming_normal --filter '*.attn.*'
  fastinit plan gpt2 --json | jq '.rows[].std'
"""
_INIT_EPILOG = """
examples:
  fastinit init gpt2 --out gpt2.safetensors
  fastinit init llama-3-8b --dtype bfloat16 --shard-size 5GB --out llama/model.safetensors
  fastinit init train.py:make_model --rules recipe.toml --seed 7 --out start.safetensors
"""
_VERIFY_EPILOG = """
examples:
  fastinit verify gpt2.safetensors
  fastinit verify llama/model.safetensors.index.json
  fastinit verify start.safetensors --model train.py:make_model
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return its exit code: 0, 1 for a check that failed, 2 for a user's mistake."""
    parser = _parser()
    try:
        given = parser.parse_args(arguments)
    except SystemExit as stopped:  # of --help, and of a mistake that argparse has told
        return stopped.code if isinstance(stopped.code, int) else _MISTAKE
    usual = warnings.formatwarning
    warnings.formatwarning = _formatted
    try:
        code: int = given.run(given)
        sys.stdout.flush()
        return code
    except Mistake as mistake:
        print(f"fastinit: {mistake}", file=sys.stderr)
        return _MISTAKE
    except KeyboardInterrupt:
        print("fastinit: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OK
    finally:
        warnings.formatwarning = usual


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"fastinit: {category.__name__}: {message}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastinit",
        description="Weight initialisation for PyTorch: every parameter in one pass, reproducible to the bit.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, epilog: str | None = None, json_too: bool = True) -> Any:
        added = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        if json_too:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    model_epilog = _MODEL.format(", ".join(ARCHITECTURES))
    command("info", _info, "what is installed, what was built, and what will run")
    command("demo", _demo, "initialise a 1.5-billion-parameter GPT-2 XL both ways (7 GB of memory)", json_too=False)
    plan = command(
        "plan", _plan, "print which values a model gets, and why; nothing is written", model_epilog + _PLAN_EPILOG
    )
    _add_model(plan)
    plan.add_argument("--filter", metavar="GLOB", help="only parameters with such names, as '*.attn.*'")
    init = command(
        "init", _init, "write the initial values of a model to safetensors files", model_epilog + _INIT_EPILOG
    )
    _add_model(init)
    init.add_argument("--out", metavar="FILE", required=True, type=Path, help="a path that ends in .safetensors")
    init.add_argument(
        "--shard-size", metavar="SIZE", type=_nbytes, default=_nbytes("5GB"), help="the most of one file (default 5GB)"
    )
    init.add_argument("--force", action="store_true", help="replace files that are there")
    verify = command(
        "verify", _verify, "make the values of a file once more and compare them to the bit", _VERIFY_EPILOG
    )
    _add_file(verify)
    verify.add_argument("--model", metavar="MODEL", help="how to build the model, where the file names code for it")
    _add_file(command("report", _report, "statistics of every tensor in a file"))
    measure = command("bench", _bench, "a few fills by torch.nn.init and by fastinit, in some ten seconds")
    measure.add_argument("--mib", metavar="N", type=_positive, default=64, help="MiB to fill (default 64)")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="see below")
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        help="a scheme or a preset (default: the preset of a published architecture, else own, the model's own code)",
    )
    parser.add_argument(
        "--rules", metavar="RECIPE", help="a recipe in a .toml or .json file, with its scheme and rules"
    )
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="of all values (default 0)")
    parser.add_argument(
        "--dtype", choices=models.DTYPES, help="of the floating-point parameters (default: the model's)"
    )


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a .safetensors file, or the .index.json of several")


def _seed(text: str) -> int:
    try:
        seed = as_seed(int(text, 0))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected an int in [0, 2**64), got {text!r}") from error
    assert seed is not None
    return seed


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive int, got {text!r}")
    return int(text)


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _nbytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0.0:
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 512MiB, got {text!r}")
    return math.ceil(float(match[1]) * _UNITS[match[2].upper()])


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def _info(given: argparse.Namespace) -> int:
    facts = info.facts()
    if given.json:
        _print_json(facts)
        return _OK
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name + ':':{width}}{value}")
    return _OK


def _demo(given: argparse.Namespace) -> int:
    demo.run()
    return _OK


def _named(given: argparse.Namespace) -> models.Named:
    return models.named(given.model, scheme=given.scheme, rules=given.rules, seed=given.seed, dtype=given.dtype)


def _plan(given: argparse.Namespace) -> int:
    made = models.planned(_named(given))
    plan = made.plan if given.filter is None else made.plan.filter(given.filter)
    if given.filter is not None and not plan.rows:
        raise Mistake(f"--filter: no parameter is called {given.filter}")
    if given.json:
        rows = json.loads(plan.to_json())
        said = {"model": given.model, "scheme": made.scheme, "seed": given.seed}
        _print_json({**said, "elements": plan.numel, "bytes": plan.nbytes, "rows": rows})
    else:
        print(plan)
    return _OK


def _init(given: argparse.Namespace) -> int:
    start = time.perf_counter()
    written = writing.run(_named(given), given.out, given.shard_size, given.force)
    seconds = time.perf_counter() - start
    if given.json:
        data = written._asdict()
        paths = {
            "files": [str(each) for each in written.files],
            "index_file": written.index_file and str(written.index_file),
        }
        _print_json({**data, **paths, "fingerprint": f"{written.fingerprint:016x}", "seconds": seconds})
        return _OK
    for file in (*written.files, *([written.index_file] if written.index_file else [])):
        print(file)
    print(
        f"{written.tensors} tensors, {written.numel:,} elements, {written.nbytes / 1e9:.3g} GB in {seconds:.1f} s "
        f"({written.nbytes / 1e9 / seconds:.2f} GB/s)"
    )
    print(f"scheme {written.scheme}, seed {given.seed}, fingerprint {written.fingerprint:016x}")
    for name, first in written.tied.items():
        print(f"{name} is tied to {first}, and stored once, under that name")
    return _OK


def _verify(given: argparse.Namespace) -> int:
    outcome = checking.run(given.file, given.model)
    if given.json:
        _print_json({**outcome._asdict(), "files": [str(each) for each in outcome.files]})
    elif outcome.problems:
        for line in checking.shown(outcome.problems):
            print(line)
        print(f"{given.file}: not as promised")
    else:
        whole = f"fingerprint {outcome.fingerprint}" if outcome.fingerprint else "a part of the model"
        print(f"{given.file}: {outcome.tensors} tensors hold the values that their metadata promise ({whole})")
    return _FAILED if outcome.problems else _OK


def _report(given: argparse.Namespace) -> int:
    found = statistics.run(given.file)
    if given.json:
        _print_json([_as_data(each) for each in found])
    else:
        print(statistics.table(found))
    return _FAILED if any(each.nonfinite for each in found) else _OK


def _as_data(each: statistics.Statistics) -> dict[str, Any]:
    data = {key: None if value != value else value for key, value in each._asdict().items()}  # JSON has no NaN
    return {**data, "dtype": str(each.dtype).removeprefix("torch.")}


def _bench(given: argparse.Namespace) -> int:
    measured = bench.run(given.mib)
    if given.json:
        _print_json([each._asdict() for each in measured])
    else:
        print(bench.table(measured))
    return _OK
