"""Checks an installed fastinit from outside its source tree: check_install.py {cpu,cuda,none} [--torch VERSION].

The first argument says what must have been built. Under `cpu` and `cuda` the last line is a SHA-256 of the values of
many schemes, dtypes and shapes for one seed, filled by the CPU: environments that print the same agree to the bit.
Under `none` the compiled module must be absent, the reason must be recorded, and everything must work all the same.
"""

import argparse
import hashlib
import importlib
import json
import pathlib
import warnings

import torch

SCHEMES = ["uniform", "normal", "trunc_normal", "xavier_uniform", "kaiming_normal", "lecun_normal"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (7, 13), (300, 1001)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("expected", choices=["cpu", "cuda", "none"])
    parser.add_argument("--torch", default="", help="what torch.__version__ must begin with")
    arguments = parser.parse_args()
    assert torch.__version__.startswith(arguments.torch), torch.__version__

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the compiled module is absent may be said as a warning
        import fastinit

        check_build(fastinit, arguments.expected)
        backend = "auto" if arguments.expected == "none" else "native"
        digest = hashlib.sha256()
        for dtype in DTYPES:
            for scheme in SCHEMES:
                tensors = [torch.full(shape, torch.nan, dtype=dtype) for shape in SHAPES]
                fastinit.init_(tensors, scheme, seed=0, backend=backend)
                for tensor in tensors:
                    assert torch.isfinite(tensor).all(), (scheme, dtype)
                    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        torch.manual_seed(0)
        single = torch.full((1000,), torch.nan)
        fastinit.uniform_(single, 0.0, 1.0)
        assert 0.0 <= single.min() < 0.1 and 0.9 < single.max() <= 1.0
        digest.update(single.numpy().tobytes())

    folder = pathlib.Path(fastinit.__file__).parent
    print(f"fastinit {fastinit.__version__} in {folder}, torch {torch.__version__}: good")
    print(digest.hexdigest())


def check_build(fastinit, expected: str) -> None:
    info = json.loads((pathlib.Path(fastinit.__file__).parent / "_build_info.json").read_text())
    assert info["build"] == expected, info
    # Whatever is not there, there is a reason for it.
    assert (info["reason"] is None) == (expected != "none"), info
    assert (info["without_cuda"] is None) == (expected != "cpu"), info
    try:
        module = importlib.import_module("fastinit._C")
    except ModuleNotFoundError:
        assert expected == "none"
    else:
        assert expected != "none", "fastinit._C is there though it was not built"
        assert module.HAS_CUDA is (expected == "cuda")


if __name__ == "__main__":
    main()
