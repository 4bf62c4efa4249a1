"""A PEFT adapter's folder: `adapter_config.json` and the header of `adapter_model.safetensors`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OTHER_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")
PREFIX = "base_model.model."
# vLLM passes these over (is_base_embedding_weights in vllm/lora/utils.py).
_BASE_WEIGHTS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


class BadFile(Exception):
    """A file of the adapter's that is missing or cannot be read; the message says which and why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header describes it."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `BF16`."""


@dataclass
class LoraModule:
    """The two tensors of a module; A is (rank, inputs), B is (outputs, rank)."""

    a: Tensor | None = None
    b: Tensor | None = None


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return `adapter_config.json`. Raises BadFile."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise BadFile(f"{CONFIG_FILE} is missing")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadFile(f"{CONFIG_FILE} cannot be read: {_line(error)}") from error
    if not isinstance(content, dict):
        raise BadFile(f"{CONFIG_FILE} is no JSON object")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors by name, from the header alone; the header must fit the file. Raises BadFile.

    Raises UserError where safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError("safetensors is not installed; pip install 'lorasim[bench]'") from error
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        others = [name for name in OTHER_WEIGHTS if (folder / name).is_file()]
        hint = f"; {others[0]} cannot be checked, save it as safetensors" if others else ""
        raise BadFile(f"{WEIGHTS_FILE} is missing{hint}")
    try:
        with safe_open(file, framework="numpy") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            return {name: Tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{WEIGHTS_FILE} is corrupt: {_line(error)}") from error


def lora_modules(tensors: Mapping[str, Tensor]) -> tuple[dict[str, LoraModule], list[str]]:
    """Return the modules by path, and the names of tensors that vLLM would refuse.

    As parse_fine_tuned_lora_name in vllm/lora/utils.py. The embedding's tensors have their factors the other
    way round: A is (rank, vocabulary), B is (hidden, rank), as a linear module's.
    """
    modules: dict[str, LoraModule] = {}
    refused = []
    for name, tensor in tensors.items():
        if name.endswith(_BASE_WEIGHTS):
            continue
        path, _, ending = name.removesuffix(".weight").rpartition(".")
        linear = name.endswith(".weight") and ending in ("lora_A", "lora_B")
        if not path or not (linear or ending in ("lora_embedding_A", "lora_embedding_B")):
            refused.append(name)
            continue
        module = modules.setdefault(path.removeprefix(PREFIX), LoraModule())
        if ending.endswith("A"):
            module.a = tensor
        else:
            module.b = tensor
    return modules, refused


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
