"""Waiting requests in the order of their arrival, and those that run beside them."""

from policies.admission.adapter_lines import AdapterLines
from policies.admission.protocol import R
from policies.view import EngineView


class ArrivalLines(AdapterLines[R]):
    """First come, first served; preempted requests go to the front, as in vLLM, the last one foremost.

    It keeps its own count of what waits and runs for each adapter, so that a policy finds it true in the
    middle of a step. As `candidates` stands here, nobody is kept out; that is for subclasses.
    """

    _engine: EngineView

    def __init__(self) -> None:
        super().__init__()
        self._num_waiting: dict[str | None, int] = {}
        self._running: dict[str | None, dict[R, None]] = {}

    def bind(self, engine: EngineView) -> None:
        """Keep the engine's view."""
        self._engine = engine

    def add(self, request: R) -> None:
        """Append."""
        self._put_in(request, self._num_entries + 1)

    def requeue(self, request: R) -> None:
        """Prepend."""
        self._stop(request)
        self._put_in(request, -self._num_entries - 1)

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        self._take_out(request)

    def admit(self, request: R) -> None:
        """Take a candidate out of the line: it runs."""
        self._take_out(request)
        self._running.setdefault(request.adapter, {})[request] = None

    def on_finish(self, request: R) -> None:
        """It runs no longer."""
        self._stop(request)

    def _put_in(self, request: R, place: int) -> None:
        self._insert(request, place)
        self._num_waiting[request.adapter] = self._num_waiting.get(request.adapter, 0) + 1

    def _take_out(self, request: R) -> None:
        del self._entries[request]
        adapter = request.adapter
        self._num_waiting[adapter] -= 1
        if not self._num_waiting[adapter]:
            del self._num_waiting[adapter]

    def _stop(self, request: R) -> None:
        running = self._running.get(request.adapter, {})
        running.pop(request, None)
        if not running:
            self._running.pop(request.adapter, None)
