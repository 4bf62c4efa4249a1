"""An adapter on disk, in the format of PEFT: what its two files say, and what is wrong with them."""

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
OTHER_TENSORS_FILES = ("adapter_model.bin", "adapter_model.pt")
MOST_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


class AdapterError(Exception):
    """The adapter cannot be used; the text says why."""


class TensorEntry(NamedTuple):
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset in bytes from the start of the data."""
    end: int


@dataclass(frozen=True)
class TensorsHeader:
    """The header of a safetensors file."""

    entries: list[TensorEntry]
    """In order of their place in the file."""
    data_begin: int
    """Offset in bytes from the start of the file."""
    data_bytes: int


def read_config(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json; raises AdapterError."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: not a JSON object")
    return config


def read_header(path: Path) -> TensorsHeader:
    """Return the header of a safetensors file; raises AdapterError where the file does not hold what it
    announces.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= min(MOST_HEADER_BYTES, file_bytes - 8):
                raise AdapterError(f"{path}: not a safetensors file, or cut off in its header")
            header = json.loads(file.read(length))
            entries = [_entry(name, value) for name, value in header.items() if name != "__metadata__"]
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: not a safetensors header: {error!r}") from None
    entries.sort(key=lambda entry: entry.begin)
    data_bytes = max((entry.end for entry in entries), default=0)
    if 8 + length + data_bytes > file_bytes:
        raise AdapterError(f"{path}: cut off: {file_bytes} bytes of {8 + length + data_bytes}")
    return TensorsHeader(entries, 8 + length, data_bytes)


def check_config(config: dict[str, Any], max_lora_rank: int) -> None:
    """Raise AdapterError for what vLLM refuses (vllm/lora/peft_helper.py)."""
    missing = sorted({"r", "lora_alpha", "target_modules"} - set(config))
    if missing:
        raise AdapterError(f"{CONFIG_FILE}: without {', '.join(missing)}")
    rank = config["r"]
    if not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"{CONFIG_FILE}: r={rank!r}: not a rank")
    if rank > max_lora_rank:
        raise AdapterError(f"its rank {rank} is greater than max_lora_rank={max_lora_rank}")
    for name, accepted in (("bias", "none"), ("modules_to_save", None), ("use_dora", False)):
        if config.get(name) not in (accepted, None, []):
            raise AdapterError(f"{CONFIG_FILE}: {name}={config[name]!r}: vLLM does not support it")


def check_header(header: TensorsHeader, max_lora_rank: int) -> None:
    """Raise AdapterError where the tensors are no LoRA, or do not fit in a slot."""
    if not header.entries:
        raise AdapterError(f"{TENSORS_FILE}: without tensors")
    for name, _, shape, _, _ in header.entries:
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            rank = shape[0 if name.endswith("A.weight") else -1] if len(shape) == 2 else 0
            if not 0 < rank <= max_lora_rank:
                raise AdapterError(f"{name}: shape {list(shape)}, with max_lora_rank={max_lora_rank}")


def check_adapter(folder: Path, max_lora_rank: int) -> None:
    """Read the configuration and the header, no weights; raises AdapterError for what vLLM would refuse."""
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder")
    check_config(read_config(folder), max_lora_rank)
    if (folder / TENSORS_FILE).exists():
        check_header(read_header(folder / TENSORS_FILE), max_lora_rank)
    elif not any((folder / name).exists() for name in OTHER_TENSORS_FILES):
        raise AdapterError(f"{folder}: without {TENSORS_FILE}")


def signature(folder: Path) -> tuple[Any, ...]:
    """Return what changes when somebody writes to the adapter's files."""
    found = []
    for name in (CONFIG_FILE, TENSORS_FILE, *OTHER_TENSORS_FILES):
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        found.append((name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _entry(name: str, value: dict[str, Any]) -> TensorEntry:
    shape, (begin, end) = tuple(value["shape"]), value["data_offsets"]
    item_bytes = ITEM_BYTES.get(value["dtype"])
    if not 0 <= begin <= end or (item_bytes and end - begin != item_bytes * prod(shape)):
        raise ValueError(f"{name}: {value}")
    return TensorEntry(name, value["dtype"], shape, begin, end)
