"""Eviction policies: which adapter gives up its GPU slot, or its place in the host cache."""

from policies.eviction.lru import Lru
from policies.eviction.protocol import EvictionPolicy, TierView

__all__ = ["EvictionPolicy", "Lru", "TierView"]
