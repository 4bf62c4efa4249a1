"""What vLLM 0.25.1 decides by itself: with these policies plain ``vllm serve`` does what was simulated."""

from collections.abc import Mapping
from typing import Any

from policies.admission import FcfsSkip, Priority
from policies.eviction import Lru

QUEUES = {"fcfs": FcfsSkip, "priority": Priority}
"""The waiting queue by ``scheduling_policy``."""

CLASSES = (*QUEUES.values(), Lru)
"""Policies that are held against vLLM itself (tests/conformance); what is derived from them is not."""

VLLM_QUEUE: Mapping[str, Any] = {
    "_target_": "policies.admission.vllm_queue",
    "scheduling_policy": "${engine.scheduling_policy}",
}
LRU: Mapping[str, Any] = {"_target_": "policies.eviction.Lru"}
NO_PREFETCH: Mapping[str, Any] = {"_target_": "policies.prefetch.NoPrefetch"}
"""Sections of a configuration."""


def foreign_policies(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the policies' sections of a run's resolved configuration that are not vLLM's own.

    A group that is left out, or empty, is vLLM's own; an empty ``host_eviction`` is as ``eviction``.
    """
    own = _own_sections((config.get("engine") or {}).get("scheduling_policy", "fcfs"))
    chosen = {group: dict(config.get(group) or {}) for group in own}
    foreign = {group for group, section in chosen.items() if section and section not in own[group]}
    if "eviction" in foreign and chosen["host_eviction"]:
        # Left out, it would be as the foreign one.
        foreign.add("host_eviction")
    return {group: section for group, section in chosen.items() if group in foreign}


def _own_sections(scheduling_policy: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the sections that say what vLLM does with this ``--scheduling-policy``."""
    queue = f"policies.admission.{QUEUES[scheduling_policy].__name__}"
    lru = [LRU, {**LRU, "protect_batch": False}]
    return {
        "admission": [{**VLLM_QUEUE, "scheduling_policy": scheduling_policy}, {"_target_": queue}],
        "eviction": lru,
        "host_eviction": lru,
        "prefetch": [NO_PREFETCH],
    }
