"""The policies of a run, as the file from which real vLLM takes them (calibrate.bridge)."""

from typing import Any

from sim.config import EnginesConfig
from sim.policy.vllms_own import foreign_policies


def bridged_policies(config: EnginesConfig) -> dict[str, Any] | None:
    """Return the sections of the file that LORASIM_POLICY names; None where the policies are vLLM's own."""
    foreign = foreign_policies({**vars(config), "engine": vars(config.engine)})
    if not foreign:
        return None
    return {**foreign, "profile": config.profile.get("name", config.profile.get("kind"))}
