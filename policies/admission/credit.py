"""dLoRA's credits: others may overtake an adapter until staying has paid for the switch to it."""

from collections.abc import Iterator
from functools import cached_property
from heapq import heappop, heappush
from math import ceil

from policies.admission.adapter_lines import Entry
from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R
from policies.parameters import checked


class Credit(ArrivalLines[R]):
    """The credits of dLoRA (Wu et al., OSDI 2024; LLMServe/dLoRA-artifact, vllm/core/scheduler.py).

    dLoRA goes on with the adapter that it has merged as long as its batch is worth more than a mixed one in
    order of arrival; each request that overtakes another takes credit from its own adapter and gives it to
    the overtaken one, which goes first when it has enough. vLLM need not merge: to stay means to go on with
    the adapters that run. So an adapter without a slot earns a credit whenever a request of a running one
    overtakes it. It is owed a slot when it has `overtakings_per_step` credits for each step that could have
    been done in the time that its load and activation will take. Then, of the running adapters, the one that
    has overtaken most is closed: it takes nobody more and gives up its slot when its last running request has
    finished. Apart from that the order is that of arrival, passing over what does not fit in the step.
    """

    def __init__(self, overtakings_per_step: float = 16) -> None:
        """Raises ValueError for a negative number."""
        super().__init__()
        self._overtakings_per_step = checked("overtakings_per_step", overtakings_per_step, at_least=0)
        self._num_overtakings = 0
        self._enough: dict[str, int] = {}
        """Adapter that waits and does not run -> `_num_overtakings` with which it has earned a slot; in the
        order in which they began to wait."""
        self._levels: list[tuple[int, int, str]] = []
        """Heap of what is in `_enough`, with the serial numbers of the entries."""
        self._owed: dict[str, None] = {}
        self._debts: dict[str, int] = {}
        """Adapter that runs -> how often it has overtaken since."""
        self._closed: dict[str | None, None] = {}
        self._tried: set[str | None] = set()
        """The adapters that were owed a slot in this step and could not take it."""

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield the first request of each adapter that is owed a slot, then all in order of arrival."""
        self._tried.clear()
        for adapter in list(self._owed):
            if len(view.scheduled_loras) >= view.max_loras:
                break
            entry = self._first(adapter)
            if entry is not None:
                yield entry[2]
                if self._waits(entry):
                    self._tried.add(adapter)
        yield from super().candidates(view)

    def admit(self, request: R) -> None:
        """Take a candidate out of the line: it runs, and may have overtaken others."""
        adapter = request.adapter
        place = self._entries[request][0]
        super().admit(request)
        if adapter in self._debts:
            longest_waiting = next(iter(self._enough), None)
            if longest_waiting is not None and self._line(longest_waiting)[0][0] < place:
                self._debts[adapter] += 1
                self._num_overtakings += 1
        elif adapter is not None:
            self._debts[adapter] = 0
            self._enough.pop(adapter, None)
            self._owed.pop(adapter, None)
        self._settle()

    def requeue(self, request: R) -> None:
        """Prepend."""
        super().requeue(request)
        self._settle()

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        super().remove(request)
        self._settle()

    def on_finish(self, request: R) -> None:
        """It runs no longer."""
        super().on_finish(request)
        self._settle()

    def _settle(self) -> None:
        """Note who has earned a slot, and close as many running adapters as those need."""
        while self._levels and self._levels[0][0] <= self._num_overtakings:
            level, _, adapter = heappop(self._levels)
            if self._enough.get(adapter) == level:
                self._owed[adapter] = None
        num_open = len(self._debts) - len(self._closed)
        for _ in range(min(num_open, num_open + len(self._owed) - self._engine.max_loras)):
            debts = ((adapter, debt) for adapter, debt in self._debts.items() if adapter not in self._closed)
            self._closed[max(debts, key=lambda debt: debt[1])[0]] = None

    def _first(self, adapter: str | None) -> Entry[R] | None:
        if adapter in self._closed or adapter in self._tried:
            return None
        return super()._first(adapter)

    def _put_in(self, request: R, place: int) -> None:
        super()._put_in(request, place)
        self._wait(request.adapter)

    def _wait(self, adapter: str | None) -> None:
        """Let an adapter that waits and does not run begin to earn credits."""
        if adapter is not None and adapter not in self._debts and adapter not in self._enough:
            level = self._enough[adapter] = self._num_overtakings + self._patience(adapter)
            heappush(self._levels, (level, self._num_entries, adapter))

    def _take_out(self, request: R) -> None:
        super()._take_out(request)
        adapter = request.adapter
        if adapter is not None and adapter not in self._num_waiting:
            self._enough.pop(adapter, None)
            self._owed.pop(adapter, None)

    def _stop(self, request: R) -> None:
        super()._stop(request)
        adapter = request.adapter
        if adapter is not None and adapter not in self._running:
            self._debts.pop(adapter, None)
            self._closed.pop(adapter, None)
            if adapter in self._num_waiting:
                self._wait(adapter)

    def _patience(self, adapter: str) -> int:
        """How often `adapter` is overtaken before it is owed a slot."""
        engine, costs, switch_ns = self._engine, self._engine.costs, 0
        if adapter not in engine.slots:
            switch_ns = costs.activate_ns(adapter)
            if adapter not in engine.host_cache:
                switch_ns += costs.load_ns(adapter)
        return max(1, ceil(self._overtakings_per_step * switch_ns / self._step_ns))

    @cached_property
    def _step_ns(self) -> int:
        """Time of a full step."""
        engine = self._engine
        return max(1, engine.costs.step_ns(engine.max_num_seqs, engine.max_loras))
