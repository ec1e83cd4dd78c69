"""How much memory a process has, and has had at the most. On Linux alone.

Not getrusage's: a process begins with the peak of the one that started it, which would hide its own.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

# A program that begins with this has the functions below.
PEAKS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from peaks import forget_peak, peak_memory\n"


def memory() -> int:
    """Bytes that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_memory() -> int:
    """Bytes that it has had resident at the most, which what was freed before counts among."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status[status.index("VmHWM:") :].split()[1])


def forget_peak() -> int:
    """Give back what was freed. The bytes that are left, with which the peak begins anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
