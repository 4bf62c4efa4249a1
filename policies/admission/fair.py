"""The virtual token counter: who has been served least goes first."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from math import inf

from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R
from policies.parameters import checked, checked_count

Rank = tuple[float, int, str | None]
"""An adapter's counter, a number that no two adapters share, and the adapter."""


class Fair(ArrivalLines[R]):
    """VTC (Sheng et al., OSDI 2024, arXiv 2401.00588) with length prediction; an adapter is a client.

    An adapter's counter grows with the tokens that it is served, `input_price` for one of a prompt and
    `output_price` for one generated; of those that wait, the adapter with the smallest counter goes first. An
    adapter that begins to wait is lifted to the smallest counter of those that do, so that nobody saves up
    service. Output is charged when a request is admitted, as the mean of the adapter's last `history_reqs`
    (before there are any: `max_tokens`), and set right when it has finished. A preempted request is charged
    when it is admitted again, not for what it lost.

    VTC knows no slots. Where `max_loras` adapters are in the step, they go on until their counters are
    `max_lead_tokens` (weighted) ahead of the smallest one that waits for a slot: 0 is fairest and leaves the
    most room unused.
    """

    def __init__(
        self,
        *,
        input_price: float = 1,
        output_price: float = 2,
        max_lead_tokens: float = 8192,
        history_reqs: int = 5,
    ) -> None:
        """Prices are those of the paper. Raises ValueError for a parameter out of its range."""
        super().__init__()
        self._input_price = checked("input_price", input_price, at_least=0)
        self._output_price = checked("output_price", output_price, at_least=0)
        self._max_lead = checked("max_lead_tokens", max_lead_tokens, at_least=0)
        self._history_reqs = checked_count("history_reqs", history_reqs)
        self._counters: dict[str | None, Rank] = {}
        self._ranking: list[Rank] = []
        """Of the adapters that wait, sorted."""
        self._last_left: str | None = None
        """The adapter that was the last to have nobody waiting any more."""
        self._lengths: dict[str | None, deque[int]] = {}
        self._predicted: dict[R, float] = {}
        """Request that runs -> output tokens that it is charged for."""

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield the first request of the adapter that has been served least, again and again."""
        rank = 0
        while len(view.scheduled_loras) < view.max_loras:
            if rank == len(self._ranking):
                return
            entry = self._line(self._ranking[rank][2])[0]
            yield entry[2]
            # Who is admitted moves back, who is passed over stays in front.
            rank += self._waits(entry)
        passed_over = {adapter for _, _, adapter in self._ranking[:rank]}
        have_slots = [adapter for adapter in (None, *view.scheduled_loras) if adapter not in passed_over]
        yield from self._ahead(have_slots)

    def _ahead(self, have_slots: list[str | None]) -> Iterator[R]:
        """Yield what needs no slot, in the same order, as long as it is not too far ahead of the others."""
        blocked = next((rank[0] for rank in self._ranking if rank[2] not in have_slots), inf)
        most = blocked + self._max_lead
        heap = [self._counters[adapter] for adapter in have_slots if adapter in self._num_waiting]
        heapify(heap)
        while heap and heap[0][0] <= most:
            adapter = heap[0][2]
            entry = self._line(adapter)[0]
            yield entry[2]
            if adapter not in self._num_waiting or self._waits(entry):
                heappop(heap)
            else:
                heapreplace(heap, self._counters[adapter])

    def admit(self, request: R) -> None:
        """Take a candidate out of the line, and charge its adapter."""
        super().admit(request)
        lengths = self._lengths.get(request.adapter)
        tokens = sum(lengths) / len(lengths) if lengths else request.max_tokens
        self._predicted[request] = tokens
        self._charge(request, self._input_price * request.num_prompt_tokens + self._output_price * tokens)

    def requeue(self, request: R) -> None:
        """Prepend, and give back what the request was charged."""
        tokens = self._predicted.pop(request, None)
        if tokens is not None:
            price = self._input_price * request.num_prompt_tokens + self._output_price * tokens
            self._charge(request, -price)
        super().requeue(request)

    def on_finish(self, request: R) -> None:
        """Charge for what it has really generated."""
        super().on_finish(request)
        tokens = self._predicted.pop(request, None)
        if tokens is not None:
            generated = self._engine.num_output_tokens(request)
            self._charge(request, self._output_price * (generated - tokens))
            lengths = self._lengths.setdefault(request.adapter, deque(maxlen=self._history_reqs))
            lengths.append(generated)

    def _charge(self, request: R, price: float) -> None:
        adapter = request.adapter
        self._count(adapter, self._counters[adapter][0] + price)

    def _count(self, adapter: str | None, counter: float) -> None:
        before = self._counters.get(adapter, (0.0, len(self._counters), adapter))
        after = self._counters[adapter] = (counter, before[1], adapter)
        if adapter in self._num_waiting:
            del self._ranking[bisect_left(self._ranking, before)]
            insort(self._ranking, after)

    def _put_in(self, request: R, place: int) -> None:
        adapter = request.adapter
        if adapter not in self._num_waiting:
            least = self._ranking[0] if self._ranking else self._counters.get(self._last_left)
            known = (rank[0] for rank in (least, self._counters.get(adapter)) if rank is not None)
            self._count(adapter, max(known, default=0.0))
            insort(self._ranking, self._counters[adapter])
        super()._put_in(request, place)

    def _take_out(self, request: R) -> None:
        super()._take_out(request)
        if request.adapter not in self._num_waiting:
            self._last_left = request.adapter
            del self._ranking[bisect_left(self._ranking, self._counters[request.adapter])]
