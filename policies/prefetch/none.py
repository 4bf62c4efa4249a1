"""No prefetch: the engine's own thread loads an adapter when a request for it is admitted, as vLLM does."""

from policies.view import EngineView, RequestView


class NoPrefetch:
    """vLLM's way: a load stalls everybody, and nothing is loaded in vain."""

    def bind(self, engine: EngineView) -> None:
        """Nothing decides."""

    def on_arrival(self, request: RequestView) -> None:
        """Nothing decides."""

    def on_departure(self, request: RequestView) -> None:
        """Nothing decides."""

    def wanted(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def next_change_ns(self) -> int | None:
        """Return None: never."""
        return None
