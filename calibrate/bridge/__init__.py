"""The policies of `policies/`, unchanged, inside vLLM 0.25.1 on one GPU."""

from typing import Any

__all__ = ["PolicyScheduler"]


def __getattr__(name: str) -> Any:
    """Import vLLM only for who asks: `--scheduler-cls calibrate.bridge.PolicyScheduler`."""
    if name == "PolicyScheduler":
        from calibrate.bridge.scheduler import PolicyScheduler

        return PolicyScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
