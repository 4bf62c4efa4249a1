"""What is between the client's clock and the engine: vLLM's API server, which at times stands still.

It does so while it writes its metrics. The study asks for them every two seconds, and vLLM keeps a line for
each combination of adapters that have ever waited and run at the same time (`vllm:lora_requests_info`,
vllm/v1/metrics/loggers.py), so that with many adapters there are tens of thousands before the hour is over,
and to write them takes longer and longer. What arrives meanwhile reaches the engine at the end, and the
tokens of a request that come meanwhile are sent together then (`RequestOutputCollector`,
vllm/v1/engine/output_processor.py): the client takes them for one, and has a gap less for each of the others.
Steps of more than 128 requests are taken over in parts, between which each token is sent
(vllm/v1/engine/async_llm.py, `output_handler`). The engine, a process of its own, works on.

A step's tokens are sent in the order of the batch, so that a new request's first one comes after all others'
(calibrate/bsc/stream.py). Later ones are late by as much, and their gaps the same.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.fast_forward import DecodeRun
from sim.metrics import NS_PER_MS
from sim.request import Request
from sim.scheduler import StepPlan
from sim.workload.streams import stream

SCRAPE_INTERVAL_NS = 2_000_000_000
"""From the end of one answer to the next question."""
MOST_MERGED = 128
"""Requests of a step that is taken over at once (`VLLM_V1_OUTPUT_PROC_CHUNK_SIZE`)."""


@dataclass(frozen=True)
class FrontEndCosts:
    """What server and client take, measured apart."""

    line_ms: float
    """The server, to write a line of its metrics (calibrate/bsc/scrape.py)."""
    request_ms: float
    """Both, from the client's clock to the engine and with the first token back (calibrate/bsc/stream.py)."""
    token_ms: float
    """Both, for each other request of the batch whose token is sent before."""


class Combinations:
    """Which sets of adapters have waited and run together, each as one number (Zobrist 1970)."""

    def __init__(self, adapters: Sequence[str], seed: int) -> None:
        rng = stream(seed, "combinations")
        keys = rng.integers(1, 2**63, (2, len(adapters)), dtype=np.int64).tolist()
        self._waiting = dict(zip(adapters, keys[0], strict=True))
        self._running = dict(zip(adapters, keys[1], strict=True))
        self._num_waiting: Counter[str] = Counter()
        self._num_running: Counter[str] = Counter()
        self._now = 0
        self._seen: set[int] = set()

    def __len__(self) -> int:
        """How many have been noted."""
        return len(self._seen)

    def note(self) -> None:
        """The combination of this moment is a line of the metrics from now on."""
        self._seen.add(self._now)

    def wait(self, adapter: str, change: int) -> None:
        """One request more (1) or less (-1) of `adapter` waits."""
        self._num_waiting[adapter] += change
        if self._num_waiting[adapter] == max(change, 0):
            self._now ^= self._waiting[adapter]

    def run(self, adapter: str, change: int) -> None:
        """The same for those that run."""
        self._num_running[adapter] += change
        if self._num_running[adapter] == max(change, 0):
            self._now ^= self._running[adapter]


class FrontEnd:
    """Knows when the API server stands still, from what the engine does; asked in the order of time."""

    def __init__(self, adapters: Sequence[str], costs: FrontEndCosts, seed: int) -> None:
        self._combinations = Combinations(adapters, seed)
        self._costs = costs
        self._num_before: dict[str, int] = {}
        self._next_scrape_ns = SCRAPE_INTERVAL_NS
        self._begins_ns: list[int] = []
        self._ends_ns: list[int] = []
        self._last_tokens_ns = -1
        self.num_gaps = self.num_merged = 0
        """Gaps between tokens of a request, and those of them that the client does not see."""

    @property
    def num_lines(self) -> int:
        """Lines of the metrics by now."""
        return len(self._combinations)

    @property
    def longest_ms(self) -> float:
        """The longest time that it stood still."""
        pairs = zip(self._begins_ns, self._ends_ns, strict=True)
        return max((end - begin for begin, end in pairs), default=0) / NS_PER_MS

    def passes_ns(self, time_ns: int) -> int:
        """When what comes at `time_ns`, from either side, goes on to the other."""
        self._scrape_until(time_ns)
        index = bisect_right(self._begins_ns, time_ns) - 1
        return max(time_ns, self._ends_ns[index]) if index >= 0 else time_ns

    def transit_ns(self, request: Request) -> int:
        """How much longer than for the engine it took the client to its first token; asked once a request."""
        num_before = self._num_before.pop(request.request_id)
        return round((self._costs.request_ms + self._costs.token_ms * num_before) * NS_PER_MS)

    def on_arrival(self, request: Request) -> None:
        """`request` is handed to the engine."""
        assert request.adapter is not None
        self._combinations.wait(request.adapter, 1)

    def on_preempt(self, request: Request) -> None:
        """`request` waits again."""
        assert request.adapter is not None
        self._combinations.run(request.adapter, -1)
        self._combinations.wait(request.adapter, 1)

    def on_finish(self, request: Request) -> None:
        """`request` is complete."""
        assert request.adapter is not None
        self._combinations.run(request.adapter, -1)

    def on_step(self) -> None:
        """A step is scheduled, so that all that the one before has changed is known."""
        self._combinations.note()

    def on_tokens(self, plan: StepPlan, now_ns: int) -> None:
        """A step has ended: its prompts run from now on."""
        for request in plan.admitted:
            assert request.adapter is not None
            self._combinations.wait(request.adapter, -1)
            self._combinations.run(request.adapter, 1)
            self._num_before.setdefault(request.request_id, plan.num_reqs - 1)
        num_decodes = plan.num_reqs - plan.num_prefill_reqs
        self.num_gaps += num_decodes
        last_ns, self._last_tokens_ns = self._last_tokens_ns, now_ns
        passes_ns = self.passes_ns(now_ns)
        if plan.num_reqs <= MOST_MERGED and now_ns < passes_ns == self.passes_ns(last_ns):
            self.num_merged += num_decodes

    def on_run(self, run: DecodeRun) -> None:
        """Further steps have ended, with the same requests, at the turns of `run`."""
        num_reqs, last_ns = run.last.plan.num_reqs, run.turn_ns(run.num_steps)
        self.num_gaps += run.num_steps * num_reqs
        self._scrape_until(last_ns)
        if num_reqs <= MOST_MERGED:
            self.num_merged += self._num_merged_turns(run) * num_reqs
        self._last_tokens_ns = last_ns

    def _num_merged_turns(self, run: DecodeRun) -> int:
        """Return how many turns of the run come while the front end stands still, but not as the first."""
        index = max(bisect_right(self._begins_ns, self._last_tokens_ns) - 1, 0)
        merged = 0
        for begin_ns, end_ns in zip(self._begins_ns[index:], self._ends_ns[index:], strict=True):
            within = run.num_turns(end_ns, inclusive=False) - run.num_turns(begin_ns, inclusive=False)
            within += begin_ns <= self._last_tokens_ns < end_ns
            merged += max(within - 1, 0)
        return merged

    def _scrape_until(self, time_ns: int) -> None:
        """Answer the questions for metrics that have come by `time_ns`."""
        while self._next_scrape_ns <= time_ns:
            end_ns = self._next_scrape_ns + round(self._costs.line_ms * NS_PER_MS * self.num_lines)
            self._begins_ns.append(self._next_scrape_ns)
            self._ends_ns.append(end_ns)
            self._next_scrape_ns = end_ns + SCRAPE_INTERVAL_NS
