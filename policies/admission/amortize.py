"""Who can still be in time goes first, and an adapter is brought in for those who repay it best."""

from collections.abc import Container, Iterator, Sequence
from typing import Generic

from policies.admission.protocol import AdmissionView, R
from policies.parameters import NS_PER_MS, duration_ns
from policies.view import EngineView


class Amortize(Generic[R]):
    """Admission by what a request costs everybody now, and by whether it can still be in time.

    A request whose adapter is in a slot costs a prefill; another one costs an activation too, and a load
    where its adapter is not in the host cache, and both stop the whole batch. Of those that have waited for
    less than `ttft_ms`, the ones without a swap go first, in order of arrival; then the adapter with the
    least swap time for each request that waits for it, with all its requests. A step brings in one adapter
    and no more, so that no token waits for several swaps, and what waits meanwhile gathers for the next. The
    same order holds among those that are late already, behind all that are not: in a burst it is better that
    some are late than that all are. Nobody is forgotten: each step begins with the first in line, if that has
    waited for `max_wait_s`; and while every slot is in use, the adapter with the fewest running requests
    takes no more, so that its slot becomes free.

    Ours. That what cannot be in time gives way is from Clockwork (Gujarati et al., OSDI 2020), which drops
    it; that a swap is paid once for all who wait for it is batching with setup times.
    """

    def __init__(self, ttft_ms: float = 2000, max_wait_s: float = 30) -> None:
        """Raises ValueError for a time that is not above 0."""
        self._ttft_ns = duration_ns("ttft_ms", ttft_ms, NS_PER_MS, positive=True)
        self._max_wait_ns = duration_ns("max_wait_s", max_wait_s, positive=True)
        self._waiting: dict[R, None] = {}
        """Preempted requests first, then in order of arrival."""
        self._has_swapped = False
        """In this step."""

    def bind(self, engine: EngineView) -> None:
        """Its costs decide, its tiers and its clock."""
        self._engine = engine

    def add(self, request: R) -> None:
        """Append."""
        self._waiting[request] = None

    def requeue(self, request: R) -> None:
        """Prepend."""
        self._waiting = {request: None, **self._waiting}

    def overtakes(self, request: R) -> bool:
        """It might: its adapter may be at hand."""
        return True

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        del self._waiting[request]

    def admit(self, request: R) -> None:
        """Take a candidate out of the line."""
        self.remove(request)

    def on_finish(self, request: R) -> None:
        """Only what waits decides."""

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield who has waited too long, those in time, those that are late; the cheap ones first."""
        now_ns = self._engine.now_ns
        self._has_swapped = False
        first = next(iter(self._waiting), None)
        left_out: list[R] = []
        closed: str | None = None
        if first is not None and now_ns - first.arrival_ns > self._max_wait_ns:
            if view.accepts(first.adapter):
                left_out.append(first)
                needs_swap = self._needs_swap(first.adapter, view.scheduled_loras)
                yield first
                self._has_swapped = needs_swap and first not in self._waiting
            else:
                closed = min(view.scheduled_loras, key=self._engine.num_running)
        in_time: list[R] = []
        late: list[R] = []
        for request in self._waiting:
            if request not in left_out and (closed is None or request.adapter != closed):
                (late if now_ns - request.arrival_ns > self._ttft_ns else in_time).append(request)
        yield from self._cheap_first(in_time, view)
        yield from self._cheap_first(late, view)

    def next_change_ns(self) -> int | None:
        """The next step where it could bring in an adapter, else when the next of them will be late."""
        engine = self._engine
        now_ns = engine.now_ns
        in_use = {request.adapter for request in engine.running} - {None}
        if len(in_use) < engine.max_loras and any(
            self._needs_swap(it.adapter, in_use) for it in self._waiting
        ):
            return now_ns
        ages = (self._ttft_ns, self._max_wait_ns)
        # One ns later, for that is when it has waited for longer.
        times = (request.arrival_ns + age + 1 for request in self._waiting for age in ages)
        return min((time_ns for time_ns in times if time_ns > now_ns), default=None)

    def __len__(self) -> int:
        return len(self._waiting)

    def _cheap_first(self, requests: Sequence[R], view: AdmissionView) -> Iterator[R]:
        """Yield those that need no swap, then the others by adapter."""
        swaps: dict[str, list[R]] = {}
        for request in requests:
            adapter = request.adapter
            if adapter is not None and self._needs_swap(adapter, view.scheduled_loras):
                swaps.setdefault(adapter, []).append(request)
            elif view.accepts(adapter):
                yield request
        if self._has_swapped:
            return
        price_ns = {adapter: self._swap_ns(adapter) / len(some) for adapter, some in swaps.items()}
        for adapter in sorted(swaps, key=price_ns.__getitem__):
            if not view.accepts(adapter):
                return
            for request in swaps[adapter]:
                yield request
                if request in self._waiting:
                    break
                self._has_swapped = True
            if self._has_swapped:
                return

    def _needs_swap(self, adapter: str | None, in_step: Container[str | None]) -> bool:
        return adapter is not None and adapter not in in_step and adapter not in self._engine.slots

    def _swap_ns(self, adapter: str) -> int:
        """What it takes to bring an adapter that is in no slot to one."""
        engine = self._engine
        load_ns = 0 if adapter in engine.host_cache else engine.costs.load_ns(adapter)
        return load_ns + engine.costs.activate_ns(adapter)
