"""The safetensors format: 8 bytes with the length of a JSON header, the header, then the tensors without gaps.

Written here, rather than by the package of that name, because that package takes tensors as a whole. It is read by it
in the tests. Source of the format: huggingface/safetensors, README.md, section Format.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastinit.cli.mistakes import Mistake

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors package


class Entry(NamedTuple):
    """A tensor in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """What a file holds: its metadata, its tensors, and for each where its bytes begin in the file."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    begins: dict[str, int]


def encoded_header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file, up to the first tensor's, which are aligned to 8 bytes.

    Raises:
        Mistake: the format has no name for a dtype.
    """
    data: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for each in entries:
        if each.dtype not in _DTYPES:
            raise Mistake(f"{each.name}: safetensors files hold no {each.dtype}")
        data[each.name] = {
            "dtype": _DTYPES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [begin, begin + each.nbytes],
        }
        begin += each.nbytes
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> Header:
    """Read the header of a file, and check that it describes the file.

    Raises:
        Mistake: there is no such file, or it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            nbytes = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(nbytes - 8, _MOST_HEADER_BYTES):
                raise ValueError("it begins with no length of a header")
            data = json.loads(file.read(length))
            metadata = data.pop("__metadata__", {})
            entries, begins = {}, {}
            for name, each in data.items():
                entries[name] = Entry(name, tuple(map(int, each["shape"])), _BY_NAME[each["dtype"]])
                begin, end = each["data_offsets"]
                if not (begin >= 0 and end - begin == entries[name].nbytes and 8 + length + end <= nbytes):
                    raise ValueError(f"the bytes of {name} do not fit its shape or the file")
                begins[name] = 8 + length + begin
            return Header({str(key): str(value) for key, value in metadata.items()}, entries, begins)
    except OSError as error:
        raise Mistake(f"FILE: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"FILE: {path} is no safetensors file: {error}") from error


def mapped(path: Path, header: Header) -> dict[str, torch.Tensor]:
    """The tensors of a file, whose bytes are read when they are looked at. Writing to one does not reach the file.

    Raises:
        Mistake: a tensor's bytes are not aligned to its elements.
    """
    found: dict[str, torch.Tensor] = {}
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for name, (_, shape, dtype) in header.entries.items():
        if header.begins[name] % dtype.itemsize:
            raise Mistake(f"FILE: {path}: the bytes of {name} are not aligned")
        count = math.prod(shape)
        if count == 0:
            found[name] = torch.empty(shape, dtype=dtype)
            continue
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=header.begins[name])
        found[name] = flat.view(shape)
    return found


def files_of(path: Path) -> list[Path]:
    """The files of a model: those that an index names, or the file alone.

    Raises:
        Mistake: the index cannot be read.
    """
    if path.suffix != ".json":
        return [path]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        # Files beside the index alone: it may come from anybody.
        return [path.parent / Path(name).name for name in dict.fromkeys(names)]
    except OSError as error:
        raise Mistake(f"FILE: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"FILE: {path} is no index of safetensors files: {error}") from error
