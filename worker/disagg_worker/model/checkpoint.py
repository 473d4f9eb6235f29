"""The safetensors files of a checkpoint as one set of named tensors.

The files are memory-mapped, and their headers are checked first. Tensors are read one at a time,
while a thread hashes the files.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from disagg_protocol.errors import ModelError
from disagg_protocol.model_files import read_json

log = logging.getLogger(__name__)
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_LOG_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The part of the weights that has been read."""

    read_bytes: int
    total_bytes: int
    seconds: float
    """Time since the checkpoint was opened."""

    @property
    def fraction(self) -> float:
        return self.read_bytes / self.total_bytes if self.total_bytes else 1.0

    def __str__(self) -> str:
        rate = self.read_bytes / max(self.seconds, 1e-3) / 1e6
        return f"{100 * self.fraction:.0f} % of {self.total_bytes / 1e9:.2f} GB, {rate:.0f} MB/s"


OnProgress = Callable[[LoadProgress], None]


def shard_files(folder: Path) -> list[Path]:
    """Return the files of the checkpoint, those of its index if it has one.

    Raises ModelError, which names what is missing.
    """
    index = read_json(folder / "model.safetensors.index.json")
    names = ["model.safetensors"]
    if index:
        weight_map = index.get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(n, str) for n in weight_map.values())
        ):
            raise ModelError("model.safetensors.index.json: weight_map: must map tensor names to files")
        names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder.name}: {name} is missing")
    return [folder / name for name in names]


class Checkpoint:
    """The opened files of a checkpoint, as a context manager.

    Raises ModelError for a truncated file, or for a tensor that is in two files.
    """

    def __init__(self, folder: Path, on_progress: OnProgress | None = None, *, hashed: bool = True) -> None:
        self.folder = folder
        self._files: dict[str, tuple[str, Any]] = {}  # tensor -> (file name, opened file)
        self._shards = shard_files(folder)
        self._on_progress = on_progress
        self._started_s = self._logged_s = time.monotonic()
        self._read_bytes = 0
        self._logged_tenth = 0
        self._total_bytes = sum(path.stat().st_size for path in self._shards)
        for path in self._shards:
            try:
                file: Any = safe_open(path, framework="pt", device="cpu")
                names = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path.name}: {error}") from None
            for name in names:
                if name in self._files:
                    raise ModelError(f"{path.name}: tensor {name} is in two files")
                self._files[name] = path.name, file
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._stop = threading.Event()
        if not hashed:
            self._stop.set()
        self._digest = self._hasher.submit(self._hash)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._files.clear()
        self._hasher.shutdown(wait=False)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name)[1].get_slice(name).get_shape())

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ModelError unless the tensor exists and has this shape."""
        file = self._file(name)[0]
        if (found := self.shape(name)) != shape:
            raise ModelError(f"{file}: {name} has shape {found}, config.json says {shape}")

    def floats(self, name: str, rows: slice = slice(None), columns: slice | None = None) -> torch.Tensor:
        """Return a part of a floating-point tensor whose values are all finite.

        Raises ModelError, which names the file and the tensor.
        """
        tensor = self.raw(name, rows, columns)
        file = self._file(name)[0]
        if tensor.dtype not in _FLOATS:
            raise ModelError(f"{file}: {name} is stored as {tensor.dtype}, which is not supported")
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(f"{file}: {name} holds NaN or infinite values")
        return tensor

    def raw(self, name: str, rows: slice = slice(None), columns: slice | None = None) -> torch.Tensor:
        """Return a part of a tensor as it is stored; it is a view of the mapped file if it is
        contiguous there.
        """
        file, opened = self._file(name)
        try:
            if rows == slice(None) and columns is None:
                tensor: torch.Tensor = opened.get_tensor(name)
            else:
                part = opened.get_slice(name)
                tensor = part[rows] if columns is None else part[rows, columns]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: {name}: {error}") from None
        self._progress(tensor.nbytes)
        return tensor

    def digest(self) -> str:
        """Return the hex SHA-256 of config.json and the files. Waits for the hashing thread."""
        return self._digest.result()

    def _file(self, name: str) -> tuple[str, Any]:
        if name not in self._files:
            raise ModelError(f"{self.folder.name}: tensor {name} is missing")
        return self._files[name]

    def _hash(self) -> str:
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for shard in self._shards:
            part = hashlib.sha256()
            with shard.open("rb") as file:
                while not self._stop.is_set() and (piece := file.read(8 << 20)):
                    part.update(piece)
            digest.update(part.digest())
        return digest.hexdigest()

    def _progress(self, n_bytes: int) -> None:
        self._read_bytes = min(self._read_bytes + n_bytes, self._total_bytes)
        now_s = time.monotonic()
        progress = LoadProgress(self._read_bytes, self._total_bytes, now_s - self._started_s)
        if self._on_progress is not None:
            self._on_progress(progress)
        tenth = int(10 * progress.fraction)
        if now_s - self._logged_s >= _LOG_EVERY_S or (tenth > self._logged_tenth and self._total_bytes > 1 << 30):
            self._logged_s, self._logged_tenth = now_s, tenth
            log.info("loading weights: %s", progress)
