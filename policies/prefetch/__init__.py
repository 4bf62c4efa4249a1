"""Prefetch policies: which adapters to bring to the host cache ahead of need."""

from policies.prefetch.protocol import PrefetchPolicy

__all__ = ["PrefetchPolicy"]
