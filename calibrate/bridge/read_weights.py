"""An adapter's weights, read into a block of memory as vLLM will use them."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrate.bridge.adapter_file import (
    ITEM_BYTES,
    OTHER_TENSORS_FILES,
    TENSORS_FILE,
    AdapterError,
    TensorEntry,
    TensorsHeader,
    check_config,
    check_header,
    read_config,
    read_header,
)

ALIGNMENT = 64
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def read_adapter(
    folder: Path, block: memoryview, dtype: str, max_lora_rank: int
) -> tuple[dict[str, Any], list[TensorEntry]]:
    """Fill `block` with the adapter's tensors in `dtype` (as safetensors spells it); returns its
    configuration and where each tensor is.

    Where the file holds `dtype` already, its data goes into the block in one piece, with one read that keeps
    no lock of Python's. B is multiplied by the scaling here, which vLLM does when it takes an adapter in
    (`LoRALayerWeights.optimize`). Raises AdapterError.
    """
    config = read_config(folder)
    check_config(config, max_lora_rank)
    path = folder / TENSORS_FILE
    if path.exists():
        header = read_header(path)
        check_header(header, max_lora_rank)
        if _is_ready_made(header, dtype):
            entries = _read_in_one_piece(path, header, block)
        else:
            entries = _convert(_safetensors(path), block, dtype)
    else:
        entries = _convert(_pickled(folder), block, dtype)
    _scale(entries, block, scaling(config))
    return config, entries


def scaling(config: dict[str, Any]) -> float:
    """Return what B is multiplied by (vllm/lora/peft_helper.py)."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def layout_of(entries: list[TensorEntry]) -> str:
    """Return a name for which tensors there are, and where."""
    return hashlib.blake2b(repr(entries).encode(), digest_size=16).hexdigest()


def view(block: Any, entry: TensorEntry) -> Any:
    """Return one tensor of a block; `block` is a uint8 tensor."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[entry.dtype])
    return block[entry.begin : entry.end].view(dtype).view(entry.shape)


def _is_ready_made(header: TensorsHeader, dtype: str) -> bool:
    item_bytes = ITEM_BYTES[dtype]
    return all(entry.dtype == dtype and entry.begin % item_bytes == 0 for entry in header.entries)


def _read_in_one_piece(path: Path, header: TensorsHeader, block: memoryview) -> list[TensorEntry]:
    _check_size(header.data_bytes, block)
    with path.open("rb", buffering=0) as file:
        file.seek(header.data_begin)
        rest = block[: header.data_bytes]
        while rest:
            num_bytes = file.readinto(rest)
            if not num_bytes:
                raise AdapterError(f"{path}: cut off while it was read")
            rest = rest[num_bytes:]
    return header.entries


def _convert(tensors: Iterator[tuple[str, Any]], block: memoryview, dtype: str) -> list[TensorEntry]:
    import torch

    memory = torch.frombuffer(block, dtype=torch.uint8)
    entries: list[TensorEntry] = []
    begin = 0
    for name, tensor in tensors:
        end = begin + tensor.numel() * ITEM_BYTES[dtype]
        _check_size(end, block)
        entry = TensorEntry(name, dtype, tuple(tensor.shape), begin, end)
        view(memory, entry).copy_(tensor)
        entries.append(entry)
        begin = -(-end // ALIGNMENT) * ALIGNMENT
    return entries


def _safetensors(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise AdapterError(f"{path}: {error}") from None


def _pickled(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch

    path = next((folder / name for name in OTHER_TENSORS_FILES if (folder / name).exists()), None)
    if path is None:
        raise AdapterError(f"{folder}: without {TENSORS_FILE}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a bad pickle raises.
        raise AdapterError(f"{path}: {type(error).__name__}: {error}") from None
    yield from tensors.items()


def _scale(entries: list[TensorEntry], block: memoryview, factor: float) -> None:
    if factor == 1:
        return
    import torch

    memory = torch.frombuffer(block, dtype=torch.uint8)
    for entry in entries:
        if entry.name.endswith((".lora_B.weight", ".lora_embedding_B")):
            view(memory, entry).mul_(factor)


def _check_size(num_bytes: int, block: memoryview) -> None:
    if num_bytes > len(block):
        raise AdapterError(f"{num_bytes} bytes of weights, but a block has {len(block)}")
