"""Chameleon's multi-level queues: small requests have a lane of their own, and large ones are not starved."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Generic

from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R
from policies.admission.size_classes import Arrival, SizeClasses
from policies.parameters import NS_PER_S, checked, checked_count, duration_ns
from policies.view import EngineView


@dataclass(slots=True)
class _Queue(Generic[R]):
    """The requests of one class."""

    quota: float = inf
    """Tokens that running requests may take together."""
    waiting: ArrivalLines[R] = field(default_factory=ArrivalLines)
    used: int = 0
    """Tokens that they take."""


@dataclass(slots=True)
class _Running:
    """A running request."""

    queue: int
    num_tokens: int
    since_ns: int
    end_ns: float
    """When it is expected to finish."""


class WeightedSize(Generic[R]):
    """The scheduler of Chameleon (Iliakopoulou et al., MICRO 2025, arXiv 2411.17741, section 4.3).

    Requests wait in up to `max_queues` queues by weighted size (SizeClasses), each with a quota of the tokens
    of `max_num_seqs` mean requests. In a step every queue, the smallest sizes first, is served up to its
    quota; what the empty queues leave is then served to the others in the same order. Within a queue the
    order is that of arrival; where the first has to wait for a slot, one for an adapter that has a slot may
    bypass it if it is expected to finish before a slot is free. (Chameleon takes back what has bypassed in
    error; an admission policy cannot.) A queue of which nothing runs may always run one.

    Classes and quotas are made anew every `refresh_s` from the last `history_reqs` arrivals, for the first
    time when `first_reqs` have arrived; until then there is one queue. A request is expected to take as long
    for each of its `max_tokens` as those that have finished did.
    """

    def __init__(  # noqa: PLR0913  They are Chameleon's.
        self,
        *,
        input_weight: float = 0.4,
        output_weight: float = 0.6,
        max_queues: int = 4,
        slo_s: float = 5,
        refresh_s: float = 300,
        first_reqs: int = 100,
        history_reqs: int = 1000,
    ) -> None:
        """Weights, number of queues and time are the paper's. Raises ValueError for what is out of range."""
        self._input_weight = checked("input_weight", input_weight, at_least=0)
        self._output_weight = checked("output_weight", output_weight, above=0)
        self._max_queues = checked_count("max_queues", max_queues)
        self._slo_s = checked("slo_s", slo_s, above=0)
        self._every_ns = duration_ns("refresh_s", refresh_s, positive=True)
        self._history: deque[Arrival] = deque(maxlen=checked_count("history_reqs", history_reqs))
        self._first_reqs = min(checked_count("first_reqs", first_reqs), history_reqs)
        self._classes: SizeClasses | None = None
        self._queues: list[_Queue[R]] = [_Queue()]
        self._queue_of: dict[R, int] = {}
        """Waiting request -> number of its queue."""
        self._running: dict[R, _Running] = {}
        self._refresh_ns: int | None = None
        self._slot_free_ns: float | None = None
        """When one of the adapters that run is expected to run no longer; None: to be found."""
        self._finished_ns = 0
        self._finished_tokens = 0

    def bind(self, engine: EngineView) -> None:
        """Keep the engine's view."""
        self._engine = engine

    def add(self, request: R) -> None:
        """Append to the queue of its size."""
        self._advance()
        self._history.append(self._arrival(request))
        self._put_in(request, front=False)
        if self._refresh_ns is None and len(self._history) >= self._first_reqs:
            self._refresh(self._engine.now_ns)

    def requeue(self, request: R) -> None:
        """Prepend to the queue of its size."""
        self._advance()
        self._stop(request)
        self._put_in(request, front=True)

    def overtakes(self, request: R) -> bool:
        """It might: a small one of a queue that has tokens left."""
        return True

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        self._advance()
        self._queues[self._queue_of.pop(request)].waiting.remove(request)

    def admit(self, request: R) -> None:
        """Take a candidate out of its queue: it runs."""
        number, now_ns = self._queue_of.pop(request), self._engine.now_ns
        queue, num_tokens = self._queues[number], _num_tokens(request)
        queue.waiting.remove(request)
        queue.used += num_tokens
        end_ns = now_ns + request.max_tokens * self._ns_per_token()
        self._running[request] = _Running(number, num_tokens, now_ns, end_ns)
        self._slot_free_ns = None

    def on_finish(self, request: R) -> None:
        """Give its tokens back to its queue."""
        self._advance()
        running = self._stop(request)
        if running is not None:
            self._finished_ns += self._engine.now_ns - running.since_ns
            self._finished_tokens += self._engine.num_output_tokens(request)

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield what the queues' quotas hold, the smallest requests first, then what is left to others."""
        self._advance()
        tried: set[R] = set()
        limited: list[_Queue[R]] = []
        for queue in self._queues:
            yield from self._of_queue(queue, view, tried, limited)
        for queue in limited if self._spare_tokens() > 0 else ():
            yield from self._of_queue(queue, view, tried)

    def next_change_ns(self) -> int | None:
        """Now: who may bypass another depends on what the running requests have generated since."""
        return self._engine.now_ns

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self._queue_of)

    def _of_queue(
        self, queue: _Queue[R], view: AdmissionView, tried: set[R], limited: list[_Queue[R]] | None = None
    ) -> Iterator[R]:
        """Yield from one queue until its quota does not hold more; then it is put in `limited`.

        Without `limited`, what the other queues leave is the limit.
        """
        most_tokens = (self._free_ns() - self._engine.now_ns) / self._ns_per_token()
        room = self._spare_tokens() if limited is None else queue.quota - queue.used
        for request in queue.waiting.candidates(view):
            if _num_tokens(request) > room and queue.used:
                if limited is not None:
                    limited.append(queue)
                return
            may_go = request.max_tokens <= most_tokens or request.adapter is None
            if request not in tried and (may_go or queue.waiting.is_first(request)):
                tried.add(request)
                yield request
                room = self._spare_tokens() if limited is None else queue.quota - queue.used

    def _spare_tokens(self) -> float:
        """What empty queues leave of their quotas, less what is borrowed already."""
        spare = 0.0
        for queue in self._queues:
            left = queue.quota - queue.used
            if left < 0 or not len(queue.waiting):
                spare += left
        return spare

    def _free_ns(self) -> float:
        if self._slot_free_ns is None:
            ends_ns: dict[str, float] = {}
            for request, running in self._running.items():
                if request.adapter is not None:
                    ends_ns[request.adapter] = max(ends_ns.get(request.adapter, 0), running.end_ns)
            self._slot_free_ns = min(ends_ns.values(), default=inf)
        return self._slot_free_ns

    def _ns_per_token(self) -> float:
        if self._finished_tokens:
            return max(1.0, self._finished_ns / self._finished_tokens)
        return max(1, self._engine.costs.step_ns(self._engine.max_num_seqs, self._engine.max_loras))

    def _arrival(self, request: R) -> Arrival:
        adapter = request.adapter
        adapter_bytes = None if adapter is None else self._engine.costs.size_bytes(adapter)
        return Arrival(self._engine.now_ns, request.num_prompt_tokens, request.max_tokens, adapter_bytes)

    def _put_in(self, request: R, *, front: bool) -> None:
        number = self._queue_of[request] = self._number(request)
        waiting = self._queues[number].waiting
        (waiting.requeue if front else waiting.add)(request)

    def _number(self, request: R) -> int:
        return self._classes.number(self._arrival(request)) if self._classes else 0

    def _stop(self, request: R) -> _Running | None:
        running = self._running.pop(request, None)
        if running is not None:
            self._queues[running.queue].used -= running.num_tokens
            self._slot_free_ns = None
        return running

    def _advance(self) -> None:
        while self._refresh_ns is not None and self._refresh_ns <= self._engine.now_ns:
            self._refresh(self._refresh_ns)

    def _refresh(self, now_ns: int) -> None:
        """Make classes and quotas anew, and sort everybody into them."""
        self._refresh_ns = now_ns + self._every_ns
        arrivals = list(self._history)
        self._classes = SizeClasses.of(arrivals, self._max_queues, self._input_weight, self._output_weight)
        shares = self._classes.shares(arrivals, self._ns_per_token() / NS_PER_S, self._slo_s)
        mean_tokens = sum(arrival.num_tokens for arrival in arrivals) / len(arrivals)
        total = self._engine.max_num_seqs * mean_tokens
        waiting = [request for queue in self._queues for request in queue.waiting]
        self._queues = [_Queue(share * total) for share in shares]
        for request in sorted(waiting, key=lambda request: request.arrival_ns):
            self._put_in(request, front=False)
        for request, running in self._running.items():
            running.queue = self._number(request)
            self._queues[running.queue].used += running.num_tokens


def _num_tokens(request: R) -> int:
    return request.num_prompt_tokens + request.max_tokens
