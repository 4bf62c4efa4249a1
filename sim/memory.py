"""GPU and host memory: how many KV blocks there are, and whether the adapters fit at all."""

from collections.abc import Collection
from dataclasses import dataclass

from sim.config import DTYPE_BYTES, EngineConfig, ModelConfig
from sim.errors import DoesNotFit

GIB = 2**30


@dataclass(frozen=True)
class MemoryProfile:
    """What a profile measured about memory, in bytes; null where it says nothing.

    ``non_kv_overhead_bytes``: what vLLM's start-up profiling finds beside base weights and adapter slots
    (activations of the largest step, CUDA context, graphs where they count).
    ``num_gpu_blocks``: KV blocks as measured, null block included, where they are not computed.
    """

    gpu_memory_bytes: int | None = None
    non_kv_overhead_bytes: int = 0
    host_memory_bytes: int | None = None
    num_gpu_blocks: int | None = None


def slot_bytes(
    model: ModelConfig, max_lora_rank: int, embeddings: bool = True, extra_vocab_size: int = 0
) -> int:
    """Return the bytes that vLLM reserves on the GPU for one of ``max_loras`` slots.

    A and B of rank ``max_lora_rank`` for every linear module (vllm/lora/layers/base_linear.py,
    column_parallel_linear.py) and, whatever the adapters target, for the embedding and the output layer
    (vocal_parallel_embedding.py, logits_processor.py). vLLM 0.8.5 has the latter for some model classes only
    (``embeddings``), and there the rows of ``extra_vocab_size`` new tokens: of the embedding, and of the
    output layer, which is padded to twice as many (vllm/lora/layers.py, `VocabParallelEmbeddingWithLoRA`).
    """
    if not embeddings:
        return model.lora_bytes(max_lora_rank)
    of_ranks = 2 * (model.vocab_size + model.hidden_size) * max_lora_rank
    of_tokens = 3 * extra_vocab_size * model.hidden_size
    return model.lora_bytes(max_lora_rank) + (of_ranks + of_tokens) * DTYPE_BYTES[model.dtype]


def num_gpu_blocks(engine: EngineConfig, model: ModelConfig, memory: MemoryProfile) -> int:
    """Return the number of KV blocks, null block included.

    ``engine.num_gpu_blocks`` if set, else the profile's, else as vLLM computes it:
    (GPU memory x gpu_memory_utilization - weights - slots - overhead) // bytes of a block
    (vllm/v1/worker/gpu_worker.py determine_available_memory, vllm/v1/core/kv_cache_utils.py get_num_blocks).
    A profile that knows no GPU memory limits nothing: ``max_num_seqs`` requests of ``max_model_len`` fit.
    Raises DoesNotFit where one request of ``max_model_len`` would not fit. As vLLM's check at start does
    (vllm/v1/core/kv_cache_utils.py `_check_enough_kv_cache_memory`), this counts the null block as room;
    see `never_admitted`.
    """
    block_bytes = engine.block_size * model.kv_bytes_per_token()
    needed = -(-engine.max_model_len // engine.block_size) * block_bytes
    available = _kv_cache_bytes(engine, model, memory, block_bytes)
    if available < needed:
        raise DoesNotFit(
            f"{model.name} with engine.max_loras={engine.max_loras} and one request of "
            f"engine.max_model_len={engine.max_model_len} does not fit in GPU memory: "
            f"{(needed - available) / GIB:.1f} GiB short"
        )
    return available // block_bytes


def never_admitted(engine: EngineConfig, num_gpu_blocks: int) -> list[str]:
    """Return a sentence where the longest requests have no room beside the null block, though vLLM starts."""
    # KV of all tokens but the last, which is never an input.
    longest = (num_gpu_blocks - 1) * engine.block_size + 1
    if longest >= engine.max_model_len:
        return []
    return [
        f"{num_gpu_blocks} KV blocks, of which vLLM keeps one: a request of more than {longest} tokens waits "
        f"for ever, and those behind it, though engine.max_model_len={engine.max_model_len}"
    ]


def check_host_memory(
    engine: EngineConfig, model: ModelConfig, memory: MemoryProfile, ranks: Collection[int]
) -> None:
    """Raise DoesNotFit if the host cache exceeds the host's memory when the largest adapters fill it.

    ``ranks`` has the rank of every adapter there is.
    """
    cached = sorted(ranks, reverse=True)[: engine.host_cache_entries]
    needed = model.lora_bytes(sum(cached))
    if memory.host_memory_bytes is not None and needed > memory.host_memory_bytes:
        raise DoesNotFit(
            f"{len(cached)} adapters of rank {_range(cached)} (engine.max_cpu_loras) do not fit in host "
            "memory: "
            f"{(needed - memory.host_memory_bytes) / GIB:.1f} GiB short"
        )


def _range(ranks: list[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[-1]} to {ranks[0]}"


def _kv_cache_bytes(engine: EngineConfig, model: ModelConfig, memory: MemoryProfile, block_bytes: int) -> int:
    """Bytes left for the KV cache; negative where not even weights and slots fit."""
    if blocks := engine.num_gpu_blocks or memory.num_gpu_blocks:
        return blocks * block_bytes
    if memory.gpu_memory_bytes is None:
        return (1 + engine.max_num_seqs * -(-engine.max_model_len // engine.block_size)) * block_bytes
    requested = int(memory.gpu_memory_bytes * engine.gpu_memory_utilization)
    slots = engine.max_loras * slot_bytes(
        model, engine.max_lora_rank, engine.lora_embeddings, engine.lora_extra_vocab_size
    )
    return requested - model.weight_bytes() - slots - memory.non_kv_overhead_bytes
