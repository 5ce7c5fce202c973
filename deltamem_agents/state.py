"""One or more sessions' memory as a value: float32 tensors that are passed in and returned, and their bytes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deltamem_agents.errors import FingerprintError, StateError

FORMAT_VERSION = "1"


@dataclass(frozen=True, slots=True, eq=False)
class MemoryState:
    """The memory of B rows: float32 [B, layers, heads, r, r], rows of a matrix by value, columns by key.

    Raises:
        StateError: when the tensor is not float32, not five-dimensional, or its matrices are not square.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        """Checks dtype and shape."""
        shape = tuple(self.tensor.shape)
        if self.tensor.dtype != torch.float32:
            raise StateError(f"a memory state is float32, got {self.tensor.dtype}: convert it with .float() yourself")
        if len(shape) != 5 or shape[3] != shape[4]:
            raise StateError(f"a memory state is [B, layers, heads, r, r], got {list(shape)}")

    @classmethod
    def zeros(
        cls, rows: int, layers: int, heads: int, rank: int, *, device: torch.device | str | None = None
    ) -> Self:
        """An empty memory: it corrects nothing, exactly."""
        return cls(torch.zeros(rows, layers, heads, rank, rank, dtype=torch.float32, device=device))

    @classmethod
    def stack(cls, states: Sequence["MemoryState"]) -> Self:
        """Joins states along the rows.

        Raises:
            StateError: when there is none, or their shapes or devices differ.
        """
        if not states:
            raise StateError("no states to stack: give at least one")
        kinds = {(tuple(s.tensor.shape[1:]), str(s.tensor.device)) for s in states}
        if len(kinds) > 1:
            raise StateError(f"states to stack must agree in shape and device, got {sorted(map(str, kinds))}")
        return cls(torch.cat([s.tensor for s in states]))

    def __len__(self) -> int:
        """The number of rows."""
        return self.tensor.shape[0]

    def rows(self, index: int | slice | Sequence[int] | Tensor) -> "MemoryState":
        """The chosen rows as a state of their own (a copy)."""
        if isinstance(index, int):
            index = [index]
        chosen = self.tensor[index if isinstance(index, slice | Tensor) else list(index)]
        return MemoryState(chosen.clone())

    def to(self, device: torch.device | str) -> "MemoryState":
        """The same memory on another device. There is no other dtype to convert to."""
        return MemoryState(self.tensor.to(device))

    def to_bytes(self, *, fingerprint: str = "") -> bytes:
        """Serialises to safetensors with format version, fingerprint and checksum in the header.

        Raises:
            StateError: the memory holds NaN or infinity.
        """
        tensor = self.tensor.detach().cpu().contiguous()
        if not torch.isfinite(tensor).all():
            raise StateError("the memory holds NaN or infinity, which no turn can undo: go on from the last snapshot")
        metadata = {"format": FORMAT_VERSION, "fingerprint": fingerprint, "sha256": _checksum(tensor, fingerprint)}
        return save({"state": tensor}, metadata={"delta_mem_state": json.dumps(metadata)})

    @classmethod
    def from_bytes(cls, data: bytes, *, fingerprint: str | None = None) -> Self:
        """Reads what `to_bytes` wrote.

        Args:
            data: the bytes.
            fingerprint: what the state must have been written with; None accepts any.

        Raises:
            StateError: the bytes are not a state, are damaged, or come from a newer format.
            FingerprintError: the state belongs to another backbone or adapter.
        """
        metadata, tensor = _parse(data)
        if metadata.get("format") != FORMAT_VERSION:
            found = metadata.get("format")
            raise StateError(f"state has format {found!r}, expected {FORMAT_VERSION!r}: read it with a newer version")
        state, written_under = cls(tensor), str(metadata.get("fingerprint"))
        if _checksum(tensor, written_under) != metadata.get("sha256"):
            raise StateError("state is damaged: its checksum does not match its content; go back to an older snapshot")
        if fingerprint is not None and written_under != fingerprint:
            raise FingerprintError(
                f"state was written under fingerprint {written_under!r}, this backbone and adapter have "
                f"{fingerprint!r}: load the matching adapter, or rebuild the session from its text"
            )
        return state


def _checksum(tensor: Tensor, fingerprint: str) -> str:
    """Of values, shape and fingerprint: float32 on the CPU."""
    return hashlib.sha256(tensor.numpy().tobytes() + f"{tuple(tensor.shape)} {fingerprint}".encode()).hexdigest()


def _parse(data: bytes) -> tuple[dict[str, object], Tensor]:
    """Our entry in the safetensors header and the tensor, or a clear error."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = json.loads(header["__metadata__"]["delta_mem_state"])
        if set(header) != {"__metadata__", "state"} or not isinstance(metadata, dict):
            raise KeyError("state")
        return metadata, load(data)["state"]
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise StateError(
            f"{len(data)} bytes are not a delta-mem state ({type(error).__name__}: {error}): expected what "
            "MemoryState.to_bytes() wrote"
        ) from error
