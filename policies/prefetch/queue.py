"""Prefetch of what is asked for already."""

from collections.abc import Iterator

from policies.view import EngineView, RequestView


class QueuePrefetch:
    """The adapters of waiting requests, in the order in which they began to be waited for.

    S-LoRA (Sheng et al., MLSys 2024) does so: it loads the adapters of the queue while the batch before runs.
    """

    _engine: EngineView

    def __init__(self) -> None:
        self._num_waiting: dict[str, int] = {}
        """In the order in which the adapters began to be waited for."""

    def bind(self, engine: EngineView) -> None:
        """Keep the engine's view."""
        self._engine = engine

    def on_arrival(self, request: RequestView) -> None:
        """Its adapter is waited for."""
        if request.adapter is not None:
            self._num_waiting[request.adapter] = self._num_waiting.get(request.adapter, 0) + 1

    def on_departure(self, request: RequestView) -> None:
        """Its adapter is waited for by one less."""
        if request.adapter is not None:
            self._num_waiting[request.adapter] -= 1
            if not self._num_waiting[request.adapter]:
                del self._num_waiting[request.adapter]

    def wanted(self) -> Iterator[str]:
        """Yield the adapters that are waited for."""
        yield from self._num_waiting

    def next_change_ns(self) -> int | None:
        """Return None: only requests decide."""
        return None

    def _num_spare(self) -> int:
        """Entries of the host cache beside those for adapters that are waited for or run."""
        in_use = {request.adapter for request in self._engine.running} | self._num_waiting.keys()
        return self._engine.max_cpu_loras - len(in_use - {None})
