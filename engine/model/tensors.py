"""Tensors in safetensors files, by name: the headers first, each tensor when it is asked for.

Files are read, never mapped: a mapped file that is cut off later kills the process. The format: 8 bytes of header size,
the header as JSON (name -> dtype, shape, place), the tensors (https://github.com/huggingface/safetensors).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT_BYTES = 100_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The formats that are read; others have a header entry all the same."""
READ_BYTES, CAST_BYTES = 1 << 24, 1 << 20
"""Read at once between two looks whether it is still wanted; the same where it is cast, so that the caches hold it."""
Edition = tuple[int, int]
"""Size of a file and the time of its last change."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: ``start`` is its first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    edition: Edition
    """The file when its header was read."""

    def read(self) -> Tensor:
        """The tensor in memory of its own. Raises ``ModelError`` when the file is gone, or is not what it was."""
        data = torch.empty(self.shape, dtype=DTYPES[self.dtype], device="cpu")
        self.fill(data)
        return data

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Some rows of the first axis, and nothing else of it. Raises as ``read``."""
        found = torch.empty((len(ids), *self.shape[1:]), dtype=DTYPES[self.dtype], device="cpu")
        row_bytes = self.num_bytes // max(1, self.shape[0])
        with self._opened() as stream:
            for row, place in zip(found, ids, strict=True):
                stream.seek(self.start + place * row_bytes)
                _fill(_bytes(row), stream)
        return found

    def part(self, first: int, last: int) -> "StoredTensor":
        """The rows of the first axis from ``first`` to before ``last``."""
        row_bytes, shape = self.num_bytes // max(1, self.shape[0]), (last - first, *self.shape[1:])
        start, num_bytes = self.start + first * row_bytes, (last - first) * row_bytes
        return StoredTensor(self.file, self.dtype, shape, start, num_bytes, self.edition)

    def fill(self, target: Tensor, *, unwanted: Callable[[], bool] = lambda: False) -> None:
        """Read the cells into ``target``, contiguous and in the machine's memory, in its dtype.

        Raises as ``read``, and ``Unwanted`` soon after ``unwanted`` says so.
        """
        dtype, cells = DTYPES[self.dtype], target.reshape(-1)
        plain = dtype == cells.dtype
        step = (READ_BYTES if plain else CAST_BYTES) // dtype.itemsize
        scratch = cells[:0] if plain else torch.empty(min(step, len(cells)), dtype=dtype, device="cpu")
        with self._opened() as stream:
            stream.seek(self.start)
            for part in cells.split(step) if len(cells) else ():
                if unwanted():
                    raise Unwanted
                stored = part if plain else scratch[: len(part)]
                _fill(_bytes(stored), stream)
                if not plain:
                    part.copy_(stored)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, if it is still the one whose header was read."""
        try:
            with self.file.open("rb", buffering=0) as stream:
                if edition_of(stream) != self.edition:
                    raise EOFError("it has changed since it was opened")
                yield stream
        except FileNotFoundError as error:
            raise _missing(self.file) from error
        except (OSError, EOFError) as error:
            raise _damaged(self.file, str(error)) from error


class Unwanted(Exception):  # noqa: N818 - no error: somebody asked for it
    """Nobody waits for the rest of what is being read."""


def edition_of(stream: BinaryIO) -> Edition:
    """What tells a file from the one that takes its place, or from what it becomes."""
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def editions_of(folder: Path) -> dict[str, Edition]:
    """The editions of the safetensors files in a folder, by their names."""
    found = {file.name: file.stat() for file in folder.glob("*.safetensors")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, in one file or in the shards that its index names.

    Raises ``ModelError`` when there are no such files, or when one is missing, cut off or no safetensors file.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in read_header(file).items()}


def weight_files(folder: Path) -> list[Path]:
    """The files in which the weights lie, whether they exist or not. Raises ``ModelError`` for a damaged index."""
    single = folder / SINGLE
    return [single] if single.is_file() or not (folder / INDEX).is_file() else _shards(folder / INDEX)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors that the file's header lists, each within the file. Raises ``ModelError``."""
    try:
        with file.open("rb") as stream:
            edition = total, _ = edition_of(stream)
            size = int.from_bytes(stream.read(8), "little")
            if size > min(HEADER_LIMIT_BYTES, total):
                raise ValueError("it does not begin with a header")
            entries = dict(json.loads(stream.read(size)))
        entries.pop("__metadata__", None)
        tensors = {name: _stored(file, entry, 8 + size, edition) for name, entry in entries.items()}
        _require_contiguous(tensors.values(), 8 + size, total)
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"{error}") from error
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(name in ("", "..") or Path(name).name != name for name in names):
            raise ValueError("it names no files of its own folder")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(index, f"{error}") from error
    return [index.with_name(name) for name in names]


def _stored(file: Path, entry: dict[str, Any], origin: int, edition: Edition) -> StoredTensor:
    """One entry of a header, checked. Raises ``ValueError``, ``TypeError`` or ``KeyError``."""
    dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("its header holds shapes or places that are no numbers")
    if dtype in DTYPES and stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError("its header holds a shape that does not fit the bytes")
    return StoredTensor(file, dtype, shape, origin + start, stop - start, edition)


def _require_contiguous(tensors: Iterable[StoredTensor], origin: int, total: int) -> None:
    """Raise ``ValueError`` unless the tensors fill the file from ``origin`` to its end, as the format asks."""
    end = origin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.num_bytes)):
        if tensor.start != end:
            raise ValueError("its header leaves gaps or lets tensors overlap")
        end += tensor.num_bytes
    if end != total:
        raise ValueError(f"it has {total:,} bytes, its header promises {end:,}")


def _bytes(cells: Tensor) -> memoryview:
    """The memory of contiguous cells."""
    return memoryview(cells.reshape(-1).view(torch.uint8).numpy().data)


def _fill(target: memoryview, stream: Any) -> None:
    """Read until the target is full; one read gives two gigabytes at most."""
    while len(target):
        count = stream.readinto(target)
        if not count:
            raise EOFError("it ends too early")
        target = target[count:]


def _missing(file: Path) -> ModelError:
    return ModelError(f"the weights file {str(file)!r} is missing; download the checkpoint again")


def _damaged(file: Path, reason: str) -> ModelError:
    short = " ".join(reason.split())[:200]
    return ModelError(f"the weights file {str(file)!r} is damaged or cut off ({short}); download the checkpoint again")
