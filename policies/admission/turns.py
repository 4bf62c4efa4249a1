"""Places that adapters hold for a time."""

from abc import abstractmethod
from collections.abc import Iterator

from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R


class Turns(ArrivalLines[R]):
    """Only adapters that hold one of a few places are admitted; subclasses say who gets one, and how long.

    Requests for the base model need no place. An adapter's place ends only when nobody runs for it; until
    then it may be closed. What is due at some time happens then, whenever it is noticed: before anything that
    comes later, and with what was known then. So it does not matter how often candidates are asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, int] = {}
        """Adapter -> when its turn began, in ns, in that order."""
        self._closed: dict[str, None] = {}
        """The adapters with a place that are not admitted any more."""
        self._pending: dict[str, int] = {}
        """Adapter without a place that has waiting requests -> since when it waits for one, in that order."""
        self._due_ns: int | None = None

    @abstractmethod
    def _settle(self, now_ns: int) -> int | None:
        """Give and end turns as of `now_ns`; return when that is due again if nothing happens, after now."""

    def _fall_due(self, now_ns: int) -> None:
        """Do what was due at `now_ns`; `_settle` comes after it."""

    def add(self, request: R) -> None:
        """Append; its adapter may have to wait for a place."""
        self._advance()
        super().add(request)
        if request.adapter is not None and request.adapter not in self._places:
            self._pending.setdefault(request.adapter, self._engine.now_ns)
        self._react()

    def requeue(self, request: R) -> None:
        """Prepend."""
        self._advance()
        super().requeue(request)
        self._react()

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        self._advance()
        super().remove(request)
        if request.adapter is not None and request.adapter not in self._num_waiting:
            self._pending.pop(request.adapter, None)
        self._react()

    def admit(self, request: R) -> None:
        """Take a candidate out of the line: it runs."""
        self._advance()
        super().admit(request)
        self._react()

    def on_finish(self, request: R) -> None:
        """It runs no longer, which may end its adapter's turn."""
        self._advance()
        super().on_finish(request)
        self._react()

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield requests for adapters whose places are open, and for the base model, in order of arrival."""
        self._advance()
        return self._merge(
            (None, *(adapter for adapter in self._places if adapter not in self._closed)), view
        )

    def next_change_ns(self) -> int | None:
        """When somebody's turn may begin or end."""
        self._advance()
        return self._due_ns

    def _advance(self) -> None:
        now_ns = self._engine.now_ns
        while self._due_ns is not None and self._due_ns <= now_ns:
            due_ns = self._due_ns
            self._fall_due(due_ns)
            self._due_ns = self._settle(due_ns)

    def _react(self) -> None:
        self._due_ns = self._settle(self._engine.now_ns)

    def _begin(self, adapter: str, now_ns: int) -> None:
        del self._pending[adapter]
        self._places[adapter] = now_ns

    def _end(self, adapter: str, now_ns: int) -> None:
        """End a turn; if requests still wait for the adapter, it waits for another, behind all others."""
        del self._places[adapter]
        self._closed.pop(adapter, None)
        if adapter in self._num_waiting:
            self._pending[adapter] = now_ns

    def _end_closed(self, now_ns: int) -> None:
        """End the turns that are closed and for which nobody runs any more."""
        for adapter in [adapter for adapter in self._closed if adapter not in self._running]:
            self._end(adapter, now_ns)

    def _is_idle(self, adapter: str) -> bool:
        return adapter not in self._running and adapter not in self._num_waiting
