"""The compiled module, imported and checked. No other file of the package imports it.

`module` is the compiled module. If it is missing or fails a check, `module` is None and `reason` says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

# A counter, a key and their block of Philox4x32-10, published with Random123 (Salmon et al., SC'11).
_KNOWN_ANSWER = (
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    (0xA4093822, 0x299F31D0),
    (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
)

STREAM_VERSION = 1
FINGERPRINT_VERSION = 1


def build_info() -> dict[str, Any]:
    """The record of the build by setup.py: the compiled backends and compilers, or the reason why there are none."""
    path = Path(__file__).with_name("_build_info.json")
    if not path.exists():
        return {"build": "none", "reason": _why_not_built(path.parent)}
    info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return info


def _why_not_built(package: Path) -> str:
    root = package.parent
    if (root / "setup.py").is_file():
        return (
            f"Python imported fastinit from its source tree, {root}, where it is not built: build it there with "
            "`pip install -e .`, or start Python in another folder to import an installed fastinit"
        )
    return f"{package} lacks _build_info.json, which every build writes: install fastinit again, with pip"


def _load() -> tuple[ModuleType | None, str | None]:
    info = build_info()
    if info["build"] == "none":
        return None, str(info.get("reason") or "built without the extension")
    try:
        from fastinit import _C
    except ImportError as error:
        return None, f"the compiled module, built with Python {info.get('python')}, cannot be imported: {error}"
    counter, key, block = _KNOWN_ANSWER
    answer = tuple(_C.philox4x32(counter, key))
    if answer != block:
        return None, f"the compiled module gives a wrong Philox4x32-10 block: {answer}, expected {block}"
    if _C.STREAM_VERSION != STREAM_VERSION:
        return (
            None,
            f"the compiled module has stream version {_C.STREAM_VERSION}, expected {STREAM_VERSION}: rebuild it",
        )
    if getattr(_C, "FINGERPRINT_VERSION", None) != FINGERPRINT_VERSION:
        return None, f"the compiled module has no fingerprint version {FINGERPRINT_VERSION}: rebuild it"
    return _C, None


module, reason = _load()
