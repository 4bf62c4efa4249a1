"""Prefetch policies: which adapters to bring to the host cache ahead of need."""

from policies.prefetch.lookahead import LookaheadPrefetch
from policies.prefetch.none import NoPrefetch
from policies.prefetch.popular import PopularPrefetch
from policies.prefetch.protocol import PrefetchPolicy
from policies.prefetch.queue import QueuePrefetch

__all__ = ["LookaheadPrefetch", "NoPrefetch", "PopularPrefetch", "PrefetchPolicy", "QueuePrefetch"]
