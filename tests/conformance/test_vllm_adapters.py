"""What happens to adapters against vLLM's own LRUCacheWorkerLoRAManager: exact equality, in order."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

import random
from types import SimpleNamespace
from typing import Any

from policies.eviction import Lru
from sim.adapters import AdapterEvent, AdapterTiers

NUM_CASES = 1500


class Theirs:
    """vLLM's two managers, with disk and layers stubbed."""

    def __init__(self, max_loras: int, max_cpu_loras: int) -> None:
        from vllm.config import LoRAConfig
        from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
        from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

        self.events: list[AdapterEvent] = []
        self.names: dict[int, str] = {}
        models = self.models = LRUCacheLoRAModelManager.__new__(LRUCacheLoRAModelManager)
        models.lora_config = LoRAConfig(max_loras=max_loras, max_cpu_loras=max_cpu_loras)
        models.lora_index_to_id = [None] * max_loras
        models.modules = {"layer": SimpleNamespace(set_lora=self.set_lora)}
        models._get_lora_layer_weights = lambda lora, module: SimpleNamespace(lora_a=lora, lora_b=None)
        models._create_merged_loras_inplace = lambda lora: None
        vacate = models._deactivate_adapter
        models._deactivate_adapter = lambda lora_id: (self.report_vacated(lora_id), vacate(lora_id))
        models._registered_adapters = AdapterLRUCache(models.capacity, self.on_leaving_host_cache)
        models._active_adapters = AdapterLRUCache(models.lora_slots, models._deactivate_adapter)
        self.worker = LRUCacheWorkerLoRAManager.__new__(LRUCacheWorkerLoRAManager)
        self.worker._adapter_manager = models
        self.worker._load_adapter = self.load_adapter

    def apply(self, adapters: list[str], hashes: dict[str, int]) -> list[AdapterEvent]:
        self.events = []
        self.worker.set_active_adapters({self.lora_request(name, hashes[name]) for name in adapters}, None)
        return self.events

    def lora_request(self, name: str, number: int) -> Any:
        """A LoRARequest is hashed by its name; this one by a number."""
        from vllm.lora.request import LoRARequest

        class NumberedRequest(LoRARequest):  # type: ignore[misc]
            def __hash__(self) -> int:
                return number

        self.names[1 + int(name)] = name
        return NumberedRequest(name, 1 + int(name), "/nowhere")

    def load_adapter(self, request: Any) -> Any:
        self.events.append(AdapterEvent("load", request.lora_name))
        return SimpleNamespace(id=request.lora_int_id)

    def set_lora(self, index: int, lora: Any, _: Any) -> None:
        self.events.append(AdapterEvent("activate", self.names[lora.id], index))

    def on_leaving_host_cache(self, lora_id: int) -> None:
        self.events.append(AdapterEvent("evict_host", self.names[lora_id]))
        self.models.deactivate_adapter(lora_id)

    def report_vacated(self, lora_id: int) -> None:
        if lora_id in self.models.lora_index_to_id:
            slot = self.models.lora_index_to_id.index(lora_id)
            self.events.append(AdapterEvent("evict_slot", self.names[lora_id], slot))

    def slots(self) -> dict[str, int]:
        numbers = self.models.lora_index_to_id
        return {self.names[number]: slot for slot, number in enumerate(numbers) if number is not None}


def test_loads_evictions_activations_and_slots() -> None:
    kinds = {"load": 0, "activate": 0, "evict_host": 0, "evict_slot": 0}
    repeated = 0
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        max_loras = rng.choice([1, 2, 3, 8, 32])
        max_cpu_loras = max_loras + rng.choice([0, 0, 1, 5, 40])
        population = [str(n) for n in range(rng.choice([max_loras, 2 * max_loras, 100]))]
        ours = AdapterTiers(max_loras, max_cpu_loras, Lru(), Lru(), seed)
        theirs = Theirs(max_loras, max_cpu_loras)
        for step in range(30):
            adapters = rng.sample(population, rng.randint(0, max_loras))
            before = set(ours.slots)
            events = ours.apply(adapters)
            assert events == theirs.apply(adapters, {name: ours.number(name) for name in adapters}), (
                f"seed {seed}, step {step}"
            )
            assert ours.slots == theirs.slots(), f"seed {seed}, step {step}"
            assert ours.host_cache == {theirs.names[n] for n in theirs.worker.list_adapters()}
            assert set(adapters) <= set(ours.slots)
            for event in events:
                kinds[event.kind] += 1
                repeated += event.kind == "activate" and event.adapter in before
    print(NUM_CASES, "cases:", kinds, "activated again:", repeated)
    assert min(*kinds.values(), repeated) > NUM_CASES
