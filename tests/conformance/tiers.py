"""Steps' adapters, and the loop that applies them to any adapter manager, ours or vLLM's."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from policies.eviction import EvictionPolicy, Lru
from sim.adapters import AdapterTiers

RULES = ("slot_cascade", "host_cascade")


@dataclass
class TiersCase:
    max_loras: int
    max_cpu_loras: int
    seed: int
    """Stands for the hashes of the adapters' names."""
    steps: list[list[str]]


class TiersSubject(Protocol):
    """An adapter manager."""

    def apply(self, adapters: list[str]) -> list[list[Any]]:
        """What happens, in order: [kind, adapter, slot]."""
        ...

    def slots(self) -> dict[str, int]: ...

    def host_cache(self) -> list[str]: ...


def play(case: TiersCase, subject: TiersSubject) -> list[dict[str, Any]]:
    return [
        {
            "events": subject.apply(adapters),
            "slots": dict(sorted(subject.slots().items())),
            "host_cache": sorted(subject.host_cache()),
        }
        for adapters in case.steps
    ]


class OurTiers:
    """Our tiers; `seen` counts the rules that have shown, and every kind of event."""

    def __init__(
        self, case: TiersCase, slots: EvictionPolicy | None = None, host: EvictionPolicy | None = None
    ) -> None:
        slots, host = slots or Lru(), host or Lru()
        self.tiers = AdapterTiers(case.max_loras, case.max_cpu_loras, slots, host, case.seed)
        self.seen: Counter[str] = Counter()

    def apply(self, adapters: list[str]) -> list[list[Any]]:
        had_slot, was_cached = set(self.tiers.slots), set(self.tiers.host_cache)
        events = self.tiers.apply(adapters)
        assert set(adapters) <= set(self.tiers.slots)
        for kind, adapter, _ in events:
            self.seen[kind] += 1
            self.seen["slot_cascade"] += kind == "activate" and adapter in had_slot
            self.seen["host_cascade"] += kind == "load" and adapter in was_cached
        return [list(event) for event in events]

    def slots(self) -> dict[str, int]:
        return self.tiers.slots

    def host_cache(self) -> list[str]:
        return list(self.tiers.host_cache)


def draw_case(rng: random.Random, num_steps: int = 30) -> TiersCase:
    max_loras = rng.choice([1, 2, 3, 8, 32])
    population = [str(n) for n in range(rng.choice([max_loras, 2 * max_loras, 100]))]
    return TiersCase(
        max_loras,
        max_loras + rng.choice([0, 0, 1, 5, 40]),
        rng.randrange(1000),
        [rng.sample(population, rng.randint(0, max_loras)) for _ in range(num_steps)],
    )
