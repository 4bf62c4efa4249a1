"""Activations in one piece: what vLLM copies to a slot, recorded once and then done again in one go.

vLLM's `activate_adapter` (vllm/lora/model_manager.py) sets a slot's tensors to zero and copies the adapter's
to it one by one: 448 copies and as many fills for Llama-3.1-8B, 9 to 15 ms of the engine's thread. An adapter
that lies in one block needs one copy to the GPU, and one call that deals it out there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COPY = torch.ops.aten.copy_.default
FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor)
ZERO = torch.ops.aten.zero_.default


class Unknown(Exception):
    """vLLM does something else than copying the block's tensors to the slot."""


@dataclass(frozen=True)
class Region:
    """A part of one of the stacked tensors, in any slot: offset in items from the slot's beginning."""

    stacked: torch.Tensor
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, view: torch.Tensor, stacks: dict[int, torch.Tensor], slot: int) -> Self:
        """Find where a view of a stacked tensor lies. Raises Unknown."""
        stacked = stacks.get(view.untyped_storage().data_ptr())
        if stacked is None:
            raise Unknown("a copy to a tensor that is no slot")
        offset = view.storage_offset() - stacked.storage_offset() - slot * stacked.stride(0)
        if not 0 <= offset < stacked.stride(0):
            raise Unknown("a copy to another slot")
        return cls(stacked, offset, tuple(view.size()), tuple(view.stride()))

    def in_slot(self, slot: int) -> torch.Tensor:
        """Return the view of this part in a slot."""
        offset = self.stacked.storage_offset() + slot * self.stacked.stride(0) + self.offset
        return self.stacked.as_strided(self.size, self.stride, offset)

    @property
    def place(self) -> tuple[int, int, int]:
        """What tells two regions apart, as long as both are contiguous."""
        return id(self.stacked), self.offset, torch.Size(self.size).numel()


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Notes every write while it is on, and lets it happen."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.zeros: list[torch.Tensor] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is COPY:
            self.copies.append((args[0], args[1]))
        elif func is ZERO or (func in FILLS and float(args[1]) == 0):
            self.zeros.append(args[0])
        elif func._schema.is_mutable:
            self.others.append(str(func))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Layout:
    """What goes where, for all adapters whose blocks have the same tensors in the same places."""

    targets: list[Region]
    sources: list[torch.Tensor]
    """Views of the staging memory, one for each of `targets`."""
    zeros: list[Region]
    """What the copies leave as it was: a greater rank's rows, modules that the adapter does not have."""
    num_bytes: int


class SlotCopies:
    """Fills slots from blocks of one adapter each.

    `stacks` are the tensors that hold the slots, the slot being their first dimension; a block has
    `block_bytes`. The first activation of a layout is vLLM's own, watched; from then on `replay` does what
    that did. The staging memory on the GPU is used in the order of the current stream, as the slots are.
    """

    def __init__(self, stacks: Iterable[torch.Tensor], block_bytes: int) -> None:
        self._stacks = {stacked.untyped_storage().data_ptr(): stacked for stacked in stacks}
        device = next(iter(self._stacks.values())).device
        with torch.inference_mode(False):
            self._staging = torch.empty(block_bytes, dtype=torch.uint8, device=device)
        self._layouts: dict[str, _Layout | None] = {}
        self._targets: dict[tuple[str, int], list[torch.Tensor]] = {}
        self._zeros: dict[tuple[str, int], list[torch.Tensor]] = {}

    def knows(self, layout: str) -> bool:
        """Whether `replay` may be called."""
        return self._layouts.get(layout) is not None

    def record(self, layout: str, block: torch.Tensor, activate: Callable[[], int]) -> None:
        """Let vLLM activate an adapter that lies in `block`, and note how; `activate` returns the slot."""
        if layout in self._layouts:
            activate()
            return
        with _Recorder() as recorder:
            slot = activate()
        try:
            self._layouts[layout] = self._understood(recorder, slot, block)
        except Unknown:
            self._layouts[layout] = None

    def replay(self, layout: str, block: torch.Tensor, slot: int) -> None:
        """Fill a slot from `block`, in the current stream."""
        known = self._layouts[layout]
        assert known is not None
        if (layout, slot) not in self._targets:
            self._targets[layout, slot] = [region.in_slot(slot) for region in known.targets]
            self._zeros[layout, slot] = [region.in_slot(slot) for region in known.zeros]
        self._staging[: known.num_bytes].copy_(block[: known.num_bytes], non_blocking=True)
        if zeros := self._zeros[layout, slot]:
            torch._foreach_zero_(zeros)
        torch._foreach_copy_(self._targets[layout, slot], known.sources)

    def _understood(self, recorder: _Recorder, slot: int, block: torch.Tensor) -> _Layout:
        if recorder.others or not recorder.copies:
            raise Unknown(", ".join(recorder.others) or "no copies")
        targets = [Region.of(target, self._stacks, slot) for target, _ in recorder.copies]
        sources = [self._staged(source, block) for _, source in recorder.copies]
        written = {region.place for region in targets}
        zeros = [Region.of(view, self._stacks, slot) for view in recorder.zeros]
        ends = (source.data_ptr() + source.numel() * source.element_size() for source in sources)
        num_bytes = max(ends) - self._staging.data_ptr()
        return _Layout(targets, sources, [zero for zero in zeros if zero.place not in written], num_bytes)

    def _staged(self, source: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        begin = source.data_ptr() - block.data_ptr()
        num_bytes = source.numel() * source.element_size()
        if not 0 <= begin <= begin + num_bytes <= block.numel() or not source.is_contiguous():
            raise Unknown("a copy from elsewhere")
        return self._staging[begin : begin + num_bytes].view(source.dtype).view(source.shape)
