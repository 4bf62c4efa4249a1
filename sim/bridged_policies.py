"""The policies of a run, as the file from which real vLLM takes them (calibrate.bridge)."""

from collections.abc import Mapping
from typing import Any

from sim.config import EnginesConfig

VLLMS_OWN: Mapping[str, tuple[str, ...]] = {
    "admission": (
        "policies.admission.vllm_queue",
        "policies.admission.FcfsSkip",
        "policies.admission.Priority",
    ),
    "eviction": ("policies.eviction.Lru",),
    "host_eviction": ("policies.eviction.Lru",),
    "prefetch": ("policies.prefetch.NoPrefetch",),
}
"""What vLLM does by itself, with parameters at their defaults."""


def bridged_policies(config: EnginesConfig) -> dict[str, Any] | None:
    """Return the sections of the file that LORASIM_POLICY names; None where the policies are vLLM's own."""
    chosen = {group: dict(getattr(config, group) or {}) for group in VLLMS_OWN}
    foreign = {group: settings for group, settings in chosen.items() if not _is_own(group, settings)}
    if not foreign:
        return None
    return {**foreign, "profile": config.profile.get("name", config.profile.get("kind"))}


def _is_own(group: str, settings: Mapping[str, Any]) -> bool:
    if not settings:
        return True
    own = settings.get("_target_") in VLLMS_OWN[group]
    return own and not settings.get("protect_batch", False)
