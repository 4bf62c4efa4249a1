"""Puts a stream of requests on a server, open loop or closed loop, and keeps what is measured."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from calibrate.bench.client import OpenAIClient
from calibrate.bench.record import COMPLETED, RequestRecord, Run

WATCH_S = 0.05


@dataclass(frozen=True)
class PlannedRequest:
    """A request before it is sent."""

    request_id: str
    adapter: str | None
    body: dict[str, Any]
    """Without what is about streaming."""
    arrival_s: float = 0.0
    """When to send it in the open loop, from the run's beginning."""
    input_length: int | None = None
    """Of the prompt, in tokens, as far as it is known; the server's own count goes before it."""
    abort_s: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run sends, and until when."""

    mode: str
    requests: Iterator[PlannedRequest]
    concurrency: int | None
    """Requests in flight in the closed loop; None: open loop, each at its own time."""
    num_requests: int | None = None
    """How many there are, if that is known before."""
    duration_s: float | None = None
    """Nothing is sent later; what is in flight then is waited for."""


class LoadRun:
    """One run of a plan.

    In the open loop a request is sent at its time, whatever became of those before it. In the closed loop
    one is sent as soon as one of the `concurrency` places is free. `stop` set, or `stop_after_failures`
    failed requests in a row, end the run at once; what was in flight then is unfinished.
    """

    def __init__(
        self,
        client: OpenAIClient,
        plan: Plan,
        stop: asyncio.Event,
        stop_after_failures: int | None = None,
        on_end: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        self.client, self.plan = client, plan
        self.records: list[RequestRecord] = []
        self._on_end = on_end
        self._stop, self._given_up = stop, asyncio.Event()
        self._most_failures, self._failures_in_a_row = stop_after_failures, 0
        self._requests, self._start = plan.requests, 0.0
        self._lags_ms: list[float] = []

    async def run(self) -> Run:
        """Send the plan's requests and return what happened to them, in order of arrival."""
        # What it takes to begin drawing requests must not be in the first one's latency.
        self._requests = chain(list(islice(self.plan.requests, 1)), self.plan.requests)
        self._start = time.perf_counter()
        closed = self.plan.concurrency is not None
        sending = asyncio.create_task(self._send_in_turn() if closed else self._send_on_time())
        others = [asyncio.create_task(event.wait()) for event in (self._stop, self._given_up)]
        watching = asyncio.create_task(self._watch_itself())
        try:
            await asyncio.wait([sending, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, watching, *others):
                task.cancel()
            await asyncio.wait([sending, watching, *others])
        if not sending.cancelled():
            sending.result()
        return Run(self.plan.mode, self.records, self._now(), self._why_it_ended(), self._lags_ms)

    def _why_it_ended(self) -> str:
        if self._given_up.is_set():
            return f"stopped after {self._most_failures} failed requests in a row"
        return "interrupted" if self._stop.is_set() else "done"

    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _watch_itself(self) -> None:
        """Take down how late this client is, which no request of a closed loop shows."""
        while True:
            due_s = self._now() + WATCH_S
            await asyncio.sleep(WATCH_S)
            self._lags_ms.append(1e3 * (self._now() - due_s))

    async def _send_on_time(self) -> None:
        async with asyncio.TaskGroup() as group:
            for planned in self._requests:
                if self.plan.duration_s is not None and planned.arrival_s >= self.plan.duration_s:
                    break
                # Also when it is late: others must get their turn.
                await asyncio.sleep(max(0.0, planned.arrival_s - self._now()))
                group.create_task(self._send(planned, planned.arrival_s))

    async def _send_in_turn(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.plan.concurrency or 0):
                group.create_task(self._keep_sending())

    async def _keep_sending(self) -> None:
        """Keep one place of the closed loop busy."""
        duration_s = self.plan.duration_s
        free_s = self._now()
        while (duration_s is None or free_s < duration_s) and not self._given_up.is_set():
            planned = next(self._requests, None)
            if planned is None:
                return
            await self._send(planned, free_s)
            free_s = self._now()

    async def _send(self, planned: PlannedRequest, arrival_s: float) -> None:
        record = RequestRecord(
            planned.request_id, planned.adapter, arrival_s, input_length=planned.input_length
        )
        self.records.append(record)
        await self.client.send(planned.body, record, self._now, planned.abort_s)
        self._failures_in_a_row = 0 if record.status == COMPLETED else self._failures_in_a_row + 1
        if self._failures_in_a_row == self._most_failures:
            self._given_up.set()
        self._on_end(record)
