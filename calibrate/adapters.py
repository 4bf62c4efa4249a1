"""Synthetic adapters: PEFT folders in the shape of a model, for measuring without anybody's weights."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

from sim.errors import UserError

SPREAD = 0.1
"""Standard deviation of adapters' weights. vLLM's dummy base weights lie within 0.001, those of its norms
too: beside them, adapters of 0.01 change no greedy output, and nobody could tell one from another."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def projections(model: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield (module path within a layer, inputs, outputs) of each linear layer of a Llama-shaped decoder
    layer.

    `model` holds the fields of a Hugging Face `config.json`.
    """
    hidden, inner = model["hidden_size"], model["intermediate_size"]
    query = model["num_attention_heads"] * model["head_dim"]
    key = model["num_key_value_heads"] * model["head_dim"]
    for name, outputs in zip(ATTENTION, (query, key, key, hidden), strict=True):
        yield f"self_attn.{name}", query if name == "o_proj" else hidden, outputs
    for name in MLP:
        yield f"mlp.{name}", *((inner, hidden) if name == "down_proj" else (hidden, inner))


def require_torch() -> None:
    """Raise UserError where what `write_adapter` needs is not installed."""
    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed: pip install 'lorasim[gpu]'")


def write_adapter(folder: Path, model: dict[str, Any], rank: int, seed: int) -> None:
    """Write one adapter with random bfloat16 weights on all linear layers into `folder`, as PEFT would save
    it.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(model["num_hidden_layers"]):
        for name, inputs, outputs in projections(model):
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                weights = torch.randn(shape, generator=generator, dtype=torch.bfloat16).mul_(SPREAD)
                tensors[f"{prefix}.lora_{part}.weight"] = weights
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [*ATTENTION, *MLP],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


class AdapterStore:
    """Any number of adapter names over a few distinct files, so that a thousand adapters fit in memory.

    A name has the same file in every engine, so that outputs can be compared between engines. vLLM reads a
    file anew for each name, so loads cost what they would cost with a file each, as long as the files stay in
    the page cache.
    """

    def __init__(self, root: Path, model: dict[str, Any], rank: int, num_files: int) -> None:
        self._folders = [root / f"rank{rank}" / f"file{i}" for i in range(num_files)]
        self._ids: dict[str, int] = {}
        for seed, folder in enumerate(self._folders):
            if not (folder / "adapter_config.json").exists():
                write_adapter(folder, model, rank, seed)

    def request(self, adapter: str) -> Any:
        """Return vLLM's LoRARequest for an adapter; its integer id counts names in order of first use."""
        from vllm.lora.request import LoRARequest

        number = self._ids.setdefault(adapter, len(self._ids) + 1)
        folder = self._folders[crc32(adapter.encode()) % len(self._folders)]
        return LoRARequest(adapter, number, str(folder))
