"""States as values and as bytes: whatever is damaged, foreign or of another shape is an error, never a memory."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from deltamem_agents.errors import FingerprintError, StateError
from deltamem_agents.state import MemoryState


def filled(rows: int = 2, layers: int = 3, heads: int = 2, rank: int = 4, *, seed: int = 0) -> MemoryState:
    generator = torch.Generator().manual_seed(seed)
    return MemoryState(torch.randn(rows, layers, heads, rank, rank, generator=generator))


BYTES = filled(1, 2, 1, 3).to_bytes(fingerprint="backbone+adapter")
HEADER = 8 + int.from_bytes(BYTES[:8], "little")


class TestValue:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
    def test_float32_only(self, dtype: torch.dtype) -> None:
        with pytest.raises(StateError, match=f"float32, got {dtype}"):
            MemoryState(torch.zeros(1, 1, 1, 2, 2, dtype=dtype))

    @pytest.mark.parametrize("shape", [(), (1, 1, 2, 2), (1, 1, 1, 2, 3), (1, 1, 1, 1, 2, 2)])
    def test_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(StateError, match=r"\[B, layers, heads, r, r\], got \["):
            MemoryState(torch.zeros(shape))

    def test_empty(self) -> None:
        state = MemoryState.zeros(2, 3, 4, 5)
        assert state.tensor.shape == (2, 3, 4, 5, 5)
        assert not state.tensor.any()
        assert len(state) == 2

    def test_frozen_and_compared_by_identity(self) -> None:
        state = filled()
        with pytest.raises(AttributeError):
            state.tensor = torch.zeros(1)
        assert state == state
        assert state != MemoryState(state.tensor)
        assert len({state, MemoryState(state.tensor)}) == 2

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    def test_stack_and_rows_undo_each_other(self, sizes: list[int]) -> None:
        parts = [filled(n, seed=n) for n in sizes]
        whole, start = MemoryState.stack(parts), 0
        assert len(whole) == sum(sizes)
        for part in parts:
            assert torch.equal(whole.rows(slice(start, start + len(part))).tensor, part.tensor)
            start += len(part)
        order = list(range(len(whole)))[::-1]
        assert torch.equal(whole.rows(order).rows(torch.tensor(order)).tensor, whole.tensor)
        assert torch.equal(whole.rows(-1).tensor, whole.tensor[-1:])

    def test_rows_are_copies(self) -> None:
        state = filled()
        for index in (0, slice(0, 1), [0], torch.tensor([0])):
            state.rows(index).tensor.zero_()
        assert state.tensor[0].any()

    def test_rows_that_are_not_there(self) -> None:
        with pytest.raises(IndexError):
            filled(2).rows(2)

    def test_stacking_what_does_not_fit(self) -> None:
        with pytest.raises(StateError, match="at least one"):
            MemoryState.stack([])
        with pytest.raises(StateError, match="agree in shape and device"):
            MemoryState.stack([filled(rank=4), filled(rank=3)])
        with pytest.raises(StateError, match=r"agree.*meta"):
            MemoryState.stack([filled(), filled().to("meta")])


class TestBytes:
    @given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.text(max_size=20))
    def test_round_trip(self, rows: int, layers: int, heads: int, rank: int, fingerprint: str) -> None:
        state = filled(rows, layers, heads, rank)
        data = state.to_bytes(fingerprint=fingerprint)
        assert torch.equal(MemoryState.from_bytes(data, fingerprint=fingerprint).tensor, state.tensor)
        assert torch.equal(MemoryState.from_bytes(data).tensor, state.tensor)
        assert data == state.to_bytes(fingerprint=fingerprint)

    def test_views_and_gradients_are_no_trouble(self) -> None:
        tensor = torch.randn(2, 2, 1, 3, 3, requires_grad=True).transpose(0, 1)
        assert torch.equal(MemoryState.from_bytes(MemoryState(tensor).to_bytes()).tensor, tensor)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_broken_memory_is_not_written(self, bad: float) -> None:
        state = filled()
        state.tensor[1, 0, 0, 1, 2] = bad
        with pytest.raises(StateError, match="NaN or infinity"):
            state.to_bytes()

    def test_another_fingerprint(self) -> None:
        with pytest.raises(FingerprintError, match=r"'backbone\+adapter'.*'mine'.*rebuild"):
            MemoryState.from_bytes(BYTES, fingerprint="mine")

    @pytest.mark.parametrize("position", range(HEADER, len(BYTES)))
    def test_each_flipped_byte_of_the_payload_is_found(self, position: int) -> None:
        data = bytearray(BYTES)
        data[position] ^= 1 << position % 8
        with pytest.raises(StateError):
            MemoryState.from_bytes(bytes(data))

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def test_damage_anywhere_is_an_error_or_harmless(self, flips: list[tuple[int, int]]) -> None:
        """A flip in the header may turn one JSON blank into another; no flip may give another memory or fingerprint."""
        data = bytearray(BYTES)
        for position, change in flips:
            data[position] ^= change
        try:
            state = MemoryState.from_bytes(bytes(data), fingerprint="backbone+adapter")
        except (StateError, FingerprintError):
            return
        assert torch.equal(state.tensor, MemoryState.from_bytes(BYTES).tensor)

    @given(st.integers(0, len(BYTES) - 1))
    def test_truncated(self, length: int) -> None:
        with pytest.raises(StateError, match="are not a delta-mem state"):
            MemoryState.from_bytes(BYTES[:length])

    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        with pytest.raises(StateError, match=f"^{len(data)} bytes are not"):
            MemoryState.from_bytes(data)

    def test_trailing_bytes(self) -> None:
        with pytest.raises(StateError):
            MemoryState.from_bytes(BYTES + b"\0")

    def test_deeply_nested_header(self) -> None:
        header = b"[" * 100_000
        with pytest.raises(StateError):
            MemoryState.from_bytes(len(header).to_bytes(8, "little") + header)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"delta_mem_state": "[]"}, {"delta_mem_state": "{"}])
    def test_foreign_safetensors(self, metadata: dict[str, str] | None) -> None:
        with pytest.raises(StateError, match="not a delta-mem state"):
            MemoryState.from_bytes(save({"state": filled().tensor}, metadata=metadata))

    def test_other_tensors_beside_the_state(self) -> None:
        entry = metadata_of(BYTES)
        tensors = {"state": filled().tensor, "more": torch.zeros(1)}
        with pytest.raises(StateError, match="not a delta-mem state"):
            MemoryState.from_bytes(save(tensors, metadata={"delta_mem_state": entry}))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
    def test_another_dtype(self, dtype: torch.dtype) -> None:
        tensor = MemoryState.from_bytes(BYTES).tensor.to(dtype)
        with pytest.raises(StateError, match=f"float32, got {dtype}"):
            MemoryState.from_bytes(save({"state": tensor}, metadata={"delta_mem_state": metadata_of(BYTES)}))

    def test_another_shape(self) -> None:
        tensor = MemoryState.from_bytes(BYTES).tensor
        entry = {"delta_mem_state": metadata_of(BYTES)}
        with pytest.raises(StateError, match="got \\[2, 1, 3, 3\\]"):
            MemoryState.from_bytes(save({"state": tensor[0]}, metadata=entry))
        with pytest.raises(StateError, match="checksum"):
            MemoryState.from_bytes(save({"state": tensor.transpose(0, 1).contiguous()}, metadata=entry))

    def test_a_changed_fingerprint_is_damage(self) -> None:
        entry = json.loads(metadata_of(BYTES)) | {"fingerprint": "mine"}
        tensor = MemoryState.from_bytes(BYTES).tensor
        with pytest.raises(StateError, match="checksum"):
            MemoryState.from_bytes(
                save({"state": tensor}, metadata={"delta_mem_state": json.dumps(entry)}), fingerprint="mine"
            )

    def test_a_newer_format(self) -> None:
        entry = json.loads(metadata_of(BYTES)) | {"format": "2"}
        data = save({"state": filled().tensor}, metadata={"delta_mem_state": json.dumps(entry)})
        with pytest.raises(StateError, match="format '2', expected '1'"):
            MemoryState.from_bytes(data)


def metadata_of(data: bytes) -> str:
    return str(json.loads(data[8:HEADER])["__metadata__"]["delta_mem_state"])
