"""The clients of a run: they send a workload's requests to its engines, open loop or closed loop."""

from collections.abc import Callable

import simpy
from simpy.events import Event, EventCallbacks

from sim.alarm import alarm
from sim.config import EngineConfig
from sim.errors import UserError
from sim.gateway import Gateway
from sim.ledger import Ledger
from sim.request import Request
from sim.workload import RequestSpec, Traffic, WorkloadConfig
from sim.workload.prefixes import prefix_hashes

MOST_REJECTED = 100_000
"""So many requests in a row that are refused at one instant would go on for ever."""


def _nobody() -> None:
    """Nobody is told."""


class Client:
    """Sends the requests of ``traffic`` to a gateway, and enters all of them in the ledger.

    Open loop: at their arrival times. Closed loop: ``concurrency`` at once, then one for each that finishes,
    at the same instant; one that is refused takes no place. A request that is not complete before
    ``abort_ns`` have passed is given up, and aborted: with 0 at once, so that it takes no place either.

    Refused, as by vLLM's server, is what could exceed ``max_model_len``, and what asks for an adapter that
    is not served or whose rank exceeds ``max_lora_rank``.
    """

    def __init__(
        self,
        env: simpy.Environment,
        workload: WorkloadConfig,
        engine: EngineConfig,
        traffic: Traffic,
        ledger: Ledger,
    ) -> None:
        self.env = env
        self.workload = workload
        self.engine = engine
        self.ledger = ledger
        self.num_in_flight = 0
        self.on_done: Callable[[], None] = _nobody
        """Told, perhaps again, that all requests have been sent and none is in flight."""
        self._traffic = traffic
        self._served = None if workload.adapters is None else set(workload.adapters)
        self._gateway: Gateway | None = None
        self._next: RequestSpec | None = None
        """Of an open loop, what is sent next."""
        self._on_arrival: EventCallbacks = [self._send_expected]

    def start(self, gateway: Gateway) -> None:
        """Begin to send, at the present instant."""
        self._gateway = gateway
        if self.workload.mode == "open":
            self._expect_next()
        else:
            for _ in range(self.workload.concurrency or 0):
                self._send_next(gateway)

    def on_finished(self, request: Request) -> None:
        """Take note that ``request`` has ended now; in a closed loop send its successor."""
        self.num_in_flight -= 1
        if self.workload.mode == "closed" and self._gateway is not None:
            self._send_next(self._gateway)
        if not self.num_in_flight:
            self._tell_if_done()

    @property
    def is_done(self) -> bool:
        """Whether all requests have been sent, and none is in flight."""
        return self.num_in_flight == 0 and len(self.ledger.requests) == self._traffic.num_requests

    def _tell_if_done(self) -> None:
        if self.is_done:
            self.on_done()

    def _expect_next(self) -> None:
        """Let the next request of an open loop come at its time, and then the one after it."""
        self._next = spec = next(self._traffic.specs, None)
        if spec is not None:
            alarm(self.env, spec.arrival_ns, int(self.env.now), self._on_arrival)

    def _send_expected(self, _: Event) -> None:
        assert self._gateway is not None
        assert self._next is not None
        self._send(self._gateway, self._next)
        self._expect_next()

    def _send_next(self, gateway: Gateway) -> None:
        """Send requests until one is in flight."""
        for num_rejected, spec in enumerate(self._traffic.specs):
            if self._send(gateway, spec):
                return
            if num_rejected > MOST_REJECTED and self._traffic.num_requests is None:
                raise UserError(
                    f"workload: {num_rejected} requests in a row were rejected; "
                    f"see engine.max_model_len={self.engine.max_model_len} and workload.adapters"
                )

    def _send(self, gateway: Gateway, spec: RequestSpec) -> bool:
        """Send a request; returns whether it is in flight."""
        request = Request(
            request_id=spec.request_id,
            arrival_ns=int(self.env.now),
            num_prompt_tokens=spec.input_length,
            output_length=spec.output_length,
            adapter=spec.adapter,
            priority=spec.priority,
            prefix_hashes=self._prefix_hashes(spec) if spec.hash_ids else (),
        )
        number = self.ledger.add(request)
        if not self._accepts(spec):
            self.ledger.rejected.add(request)
            self._tell_if_done()
            return False
        self.num_in_flight += 1
        gateway.send(number)
        if spec.abort_ns == 0 and not request.is_finished:
            self.num_in_flight -= 1
            gateway.abort(number)
            self._tell_if_done()
            return False
        if spec.abort_ns is not None:
            time_out = self.env.timeout(spec.abort_ns)
            time_out.callbacks.append(lambda _: self._give_up(gateway, number))
        return True

    def _accepts(self, spec: RequestSpec) -> bool:
        if spec.input_length + spec.output_length > self.engine.max_model_len:
            return False
        if spec.adapter is None:
            return True
        rank = self._traffic.ranks.get(spec.adapter) or 0
        return rank <= self.engine.max_lora_rank and (self._served is None or spec.adapter in self._served)

    def _prefix_hashes(self, spec: RequestSpec) -> tuple[int, ...]:
        sizes = self.workload.hash_block_size, self.engine.block_size
        return prefix_hashes(spec.hash_ids, spec.input_length, *sizes)

    def _give_up(self, gateway: Gateway, number: int) -> None:
        request = self.ledger.requests[number]
        if not request.is_finished:
            gateway.abort(number)
            self.on_finished(request)
