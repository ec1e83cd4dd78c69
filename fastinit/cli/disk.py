"""A file that is written from its beginning to its end, past the system's cache where the system can.

What goes through the cache is copied once more, and gigabytes of it push out what others read. Past it, the disk takes
the bytes from where they were made (O_DIRECT in Linux's open(2)). Memory, place and length are then multiples of a
block.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import BinaryIO

import torch
from torch import Tensor

BLOCK = 4096  # bytes; a page of memory, and no less than the blocks of today's disks


def aligned(nbytes: int) -> Tensor:
    """Bytes that begin at a block, not initialised."""
    memory = torch.empty(nbytes + BLOCK, dtype=torch.uint8)
    begin = -memory.data_ptr() % BLOCK
    return memory[begin : begin + nbytes]


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """A raw file may take less than it is given."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class Blocks:
    """The blocks of a raw file that was just opened. What is handed in begins at a block in memory, too.

    Raises:
        OSError: the file takes no more.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._past_cache = False
        # A file system may refuse it here, or at the first write.
        with suppress(OSError):
            self._past_cache = _pass_cache(file, True)

    def write(self, data: Tensor) -> None:
        """Append a whole number of blocks."""
        left = memoryview(data.numpy().data)
        while left:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                if not self._past_cache or error.errno != errno.EINVAL:
                    raise
                self._past_cache = _pass_cache(self._file, False)

    def finish(self, data: Tensor) -> None:
        """Append the last bytes, less than a block. Nothing can be appended after them."""
        if data.numel() == 0:
            return
        block = aligned(BLOCK)
        block[: data.numel()] = data
        self.write(block)
        self._file.truncate(self._file.tell() - BLOCK + data.numel())


def _pass_cache(file: BinaryIO, on: bool) -> bool:
    """Let what is written pass the cache or not, and return whether it does."""
    if sys.platform != "linux":
        return False
    from fcntl import F_GETFL, F_SETFL, fcntl

    flags = fcntl(file.fileno(), F_GETFL)
    fcntl(file.fileno(), F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    return on
