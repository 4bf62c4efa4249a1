"""SGLang's LoRADrainer: running adapters make room for those that have waited too long."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from policies.admission.adapter_lines import Entry
from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R
from policies.parameters import checked, duration_ns


class Drain(ArrivalLines[R]):
    """`LoRADrainer` of SGLang 0.5 (python/sglang/srt/lora/lora_drainer.py, `--lora-drain-wait-threshold`).

    First come, first served, passing over what does not fit in the step. When `max_loras` adapters run, and
    the first request for another has waited for more than `max_wait_s`, one of the running adapters drains
    for it: the one whose longest request has the fewest tokens to go. A draining adapter takes only requests
    that may generate at most `tolerance` times as many tokens as its longest has to go, and drains until
    nobody runs for it.

    So where all requests may generate as much, an adapter for which requests never pause never drains. Other
    than in SGLang, an adapter that runs already needs no other to drain for it; the base model takes no
    slot; and of what a draining adapter may still take, the shortest is first.
    """

    def __init__(self, max_wait_s: float = 3, tolerance: float = 1.2) -> None:
        """Raises ValueError for a parameter that is negative."""
        super().__init__()
        self._max_wait_ns = duration_ns("max_wait_s", max_wait_s)
        self._tolerance = checked("tolerance", tolerance, at_least=0)
        self._draining_for: dict[str, str] = {}
        self._shortest: dict[str | None, list[tuple[int, Entry[R]]]] = {}
        """Draining adapter -> heap of the requests that wait for it, by `max_tokens`."""
        self._most_tokens: dict[str | None, float] = {}
        """Draining adapter -> most tokens of a request that it takes in this step."""
        self._update_ns: float = 0
        """When there may be an adapter to drain that does not drain yet; nothing to do before."""

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield in order of arrival what drains nothing, or keeps nothing from draining."""
        if self._update_ns <= self._engine.now_ns:
            self._update()
        for adapter in self._draining_for:
            self._most_tokens[adapter] = self._tolerance * self._tokens_to_go(adapter)
        return super().candidates(view)

    def next_change_ns(self) -> int | None:
        """Now, while tokens decide whether a request may still join those of a draining adapter."""
        now_ns = self._engine.now_ns
        if any(self._first(adapter) is not None for adapter in self._draining_for):
            return now_ns
        return None if self._update_ns == inf else max(int(self._update_ns), now_ns)

    def _update(self) -> None:
        """Let adapters drain for those that starve, one for each, the longest waiting first."""
        self._update_ns = inf
        running = [adapter for adapter in self._running if adapter is not None]
        able = [adapter for adapter in running if adapter not in self._draining_for]
        if len(running) < self._engine.max_loras or not able:
            return
        served = {*running, *self._draining_for.values()}
        for head in self._walk():
            adapter, starves_ns = head[2].adapter, head[2].arrival_ns + self._max_wait_ns
            if adapter is None or adapter in served:
                continue
            if starves_ns >= self._engine.now_ns:
                # Those behind have arrived later, but not behind a request that was preempted.
                self._update_ns = min(self._update_ns, starves_ns + 1)
                if head[0] > 0:
                    break
                continue
            draining = min(able, key=self._tokens_to_go)
            able.remove(draining)
            served.add(adapter)
            self._start(draining, adapter)
            if not able:
                self._update_ns = inf
                break
        self._bring_back()

    def _walk(self) -> Iterator[Entry[R]]:
        """Yield the first request of every line, in order, until `_bring_back`."""
        self._bring_back()
        while (head := self._head()) is not None:
            yield head
            self._set_aside(head)

    def _start(self, adapter: str, starving: str) -> None:
        self._draining_for[adapter] = starving
        waiting = (entry for entry in self._lines.get(adapter, ()) if self._waits(entry))
        self._shortest[adapter] = [(entry[2].max_tokens, entry) for entry in waiting]
        heapify(self._shortest[adapter])
        self._most_tokens[adapter] = self._tolerance * self._tokens_to_go(adapter)

    def _tokens_to_go(self, adapter: str) -> int:
        generated = self._engine.num_output_tokens
        return max(request.max_tokens - generated(request) for request in self._running[adapter])

    def _first(self, adapter: str | None) -> Entry[R] | None:
        """Of a draining adapter the shortest request, if it is short enough."""
        if adapter not in self._draining_for:
            return super()._first(adapter)
        heap = self._shortest[adapter]
        while heap and not self._waits(heap[0][1]):
            heappop(heap)
        return heap[0][1] if heap and heap[0][0] <= self._most_tokens[adapter] else None

    def _put_in(self, request: R, place: int) -> None:
        super()._put_in(request, place)
        self._update_ns = 0
        if request.adapter in self._draining_for:
            heappush(self._shortest[request.adapter], (request.max_tokens, self._entries[request]))

    def _take_out(self, request: R) -> None:
        super()._take_out(request)
        self._update_ns = 0

    def _stop(self, request: R) -> None:
        super()._stop(request)
        self._update_ns = 0
        if request.adapter not in self._running and request.adapter is not None:
            self._draining_for.pop(request.adapter, None)
            self._shortest.pop(request.adapter, None)
            self._most_tokens.pop(request.adapter, None)
