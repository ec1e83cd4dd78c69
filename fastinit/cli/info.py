"""`python -m fastinit info`: the installed versions, the build, and the code that will run."""

from __future__ import annotations

import platform

import torch

from fastinit import _native
from fastinit._version import __version__
from fastinit.run import cuda


def facts() -> dict[str, str]:
    """The installed versions, the build, and the code that will run."""
    built = _native.build_info()
    lines = {
        "fastinit": __version__,
        "stream version": str(_native.STREAM_VERSION),
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built'}",
    }
    for key, value in built.items():
        if key in ("python", "torch"):
            lines[f"built with {key}"] = value or "none: setuptools compiled the CPU backend"
        elif value is not None:
            lines[key.replace("_", " ")] = " ".join(value) if isinstance(value, list) else str(value)
    if _native.module is None:
        lines["native code"] = f"not used: {_native.reason}"
        lines["runs through"] = "torch.nn.init"
    else:
        lines["native code"] = _native.module.__file__ or ""
        lines["known answer"] = "Philox4x32-10: as published"
        lines["instruction sets"] = ", ".join(_native.module.supported_isas())
        try:
            lines["in use"] = _native.module.active_isa()
        except ValueError as error:
            lines["in use"] = f"none: {error}"
        lines["threads"] = str(torch.get_num_threads())
        reason = cuda.obstacle()
        names = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
        lines["cuda"] = f"not used: {reason}" if reason else ", ".join(names) or "no device"
    return lines
