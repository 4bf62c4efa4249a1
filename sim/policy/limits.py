"""The limits of an engine, as policies see them, from its settings: simulated or real."""

from sim.config import EngineConfig


class Limits:
    """The part of `policies.view.EngineView` that does not change."""

    config: EngineConfig

    @property
    def max_loras(self) -> int:
        """GPU slots."""
        return self.config.max_loras

    @property
    def max_cpu_loras(self) -> int:
        """Entries of the host cache."""
        return self.config.host_cache_entries

    @property
    def max_num_seqs(self) -> int:
        """Most running requests."""
        return self.config.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens of a step."""
        return self.config.max_num_batched_tokens
