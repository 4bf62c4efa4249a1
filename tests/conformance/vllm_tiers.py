"""vLLM's own LRUCacheWorkerLoRAManager, with disk and layers stubbed."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

from types import SimpleNamespace
from typing import Any

from tests.conformance.tiers import OurTiers, TiersCase


class TheirTiers:
    """Answers as `tests.conformance.tiers.OurTiers` does."""

    def __init__(self, case: TiersCase) -> None:
        from vllm.config import LoRAConfig
        from vllm.lora.model_manager import AdapterLRUCache

        worker_class = self.worker_class()
        self.number = OurTiers(case).tiers.number
        self.events: list[list[Any]] = []
        self.names: dict[int, str] = {}
        models = self.models = worker_class._manager_cls.__new__(worker_class._manager_cls)
        models.lora_config = LoRAConfig(max_loras=case.max_loras, max_cpu_loras=case.max_cpu_loras)
        models.lora_index_to_id = [None] * case.max_loras
        models.modules = {"layer": SimpleNamespace(set_lora=self.set_lora)}
        models._get_lora_layer_weights = lambda lora, module: SimpleNamespace(lora_a=lora, lora_b=None)
        models._create_merged_loras_inplace = lambda lora: None
        vacate = models._deactivate_adapter
        models._deactivate_adapter = lambda lora_id: (self.report_vacated(lora_id), vacate(lora_id))
        models._registered_adapters = AdapterLRUCache(models.capacity, self.on_leaving_host_cache)
        models._active_adapters = AdapterLRUCache(models.lora_slots, models._deactivate_adapter)
        self.worker = worker_class.__new__(worker_class)
        self.worker._adapter_manager = models
        self.worker.load_adapter = self.load_adapter

    @staticmethod
    def worker_class() -> Any:
        """vLLM's, where a load is whatever the object's `load_adapter` makes up."""
        from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

        class WithoutDisk(LRUCacheWorkerLoRAManager):  # type: ignore[misc]
            def _load_adapter(self, request: Any) -> Any:
                return self.load_adapter(request)

        return WithoutDisk

    def apply(self, adapters: list[str]) -> list[list[Any]]:
        self.events = []
        self.worker.set_active_adapters({self.lora_request(name) for name in adapters}, None)
        return self.events

    def lora_request(self, name: str) -> Any:
        """A LoRARequest is hashed by its name; this one by a number."""
        from vllm.lora.request import LoRARequest

        number = self.number(name)

        class NumberedRequest(LoRARequest):  # type: ignore[misc]
            def __hash__(self) -> int:
                return number

        self.names[1 + int(name)] = name
        return NumberedRequest(name, 1 + int(name), "/nowhere")

    def load_adapter(self, request: Any) -> Any:
        self.events.append(["load", request.lora_name, None])
        return SimpleNamespace(id=request.lora_int_id)

    def set_lora(self, index: int, lora: Any, _: Any) -> None:
        self.events.append(["activate", self.names[lora.id], index])

    def on_leaving_host_cache(self, lora_id: int) -> None:
        self.events.append(["evict_host", self.names[lora_id], None])
        self.models.deactivate_adapter(lora_id)

    def report_vacated(self, lora_id: int) -> None:
        if lora_id in self.models.lora_index_to_id:
            slot = self.models.lora_index_to_id.index(lora_id)
            self.events.append(["evict_slot", self.names[lora_id], slot])

    def slots(self) -> dict[str, int]:
        numbers = self.models.lora_index_to_id
        return {self.names[number]: slot for slot, number in enumerate(numbers) if number is not None}

    def host_cache(self) -> list[str]:
        return [self.names[number] for number in self.worker.list_adapters()]
