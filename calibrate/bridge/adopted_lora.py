"""vLLM's LoRAModel of an adapter that lies in a block of shared memory: views of it, no copies."""

from typing import Any

from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import is_base_embedding_weights, parse_fine_tuned_lora_name

from calibrate.bridge.adapter_file import AdapterError
from calibrate.bridge.loaded import Loaded
from calibrate.bridge.read_weights import view


class LoRAInBlock(LoRAModel):  # type: ignore[misc]
    """An adapter of the host cache; without `loras`, only `SlotCopies` can bring it into a slot."""

    loaded: Loaded | None = None


def lora_without_views(lora_request: Any, loaded: Loaded) -> LoRAInBlock:
    """Build what stands for an adapter whose layout `SlotCopies` knows; reading it has checked it."""
    lora = LoRAInBlock(lora_request.lora_int_id, loaded.config["r"], {})
    lora.loaded = loaded
    return lora


def lora_from_block(worker: Any, lora_request: Any, loaded: Loaded, block: Any) -> LoRAInBlock:
    """Build what `WorkerLoRAManager._load_adapter` would, from the weights in `block` (a uint8 tensor).

    `worker` is vLLM's worker manager. Raises AdapterError for modules that the model does not have, and what
    vLLM's own PEFTHelper and LoRAModel raise.
    """
    models = worker._adapter_manager
    helper = PEFTHelper.from_dict(
        {**loaded.config, "vllm_max_position_embeddings": worker.max_position_embeddings}
    )
    helper.validate_legal(worker.lora_config)
    helper.vllm_lora_scaling_factor = 1.0  # The loader has multiplied B by it.
    mapper = getattr(models.model, "hf_to_vllm_mapper", None)
    mapper = None if mapper is None else mapper.get_unstacked_mapper()
    skip_prefixes = getattr(models.model, "lora_skip_prefixes", None)
    tensors = {entry.name: view(block, entry) for entry in loaded.entries}
    _check_modules(models, tensors, mapper, skip_prefixes)
    lora: LoRAInBlock = LoRAInBlock.from_lora_tensors(
        lora_request.lora_int_id,
        tensors,
        helper,
        device="cpu",
        dtype=worker.lora_config.lora_dtype,
        model_vocab_size=worker.vocab_size,
        weights_mapper=mapper,
        skip_prefixes=skip_prefixes,
    )
    lora.is_3d_lora_weight = lora_request.is_3d_lora_weight
    lora.loaded = loaded
    return lora


def _check_modules(models: Any, tensors: dict[str, Any], mapper: Any, skip_prefixes: Any) -> None:
    """As `LoRAModel.from_local_checkpoint` does for dense models."""
    expected: set[str] = set()
    for module in models.supported_lora_modules:
        expected.update(models.packed_modules_mapping.get(module, [module]))
    for name in tensors:
        if is_base_embedding_weights(name) or "base_layer" in name:
            continue
        if skip_prefixes and LoRAModel._should_skip_module(name, skip_prefixes):
            continue
        module, _ = parse_fine_tuned_lora_name(name, mapper)
        if module.rsplit(".", 1)[-1] not in expected:
            raise AdapterError(f"its module {module} is none of the model's: {', '.join(sorted(expected))}")
