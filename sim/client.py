"""The clients of a run: they send a workload's requests to an engine, open loop or closed loop."""

from collections.abc import Generator, Iterator

import simpy
from simpy.events import Event

from sim.engine import Engine
from sim.request import Request
from sim.workload import RequestSpec, WorkloadConfig


class Client:
    """Submits the requests of ``specs`` to ``engine`` and keeps all of them, in order of arrival.

    Open loop: at their arrival times. Closed loop: ``concurrency`` at once, then one for each that finishes,
    at the same instant. A request that could exceed ``max_model_len`` is refused, as by vLLM's server.
    """

    def __init__(
        self, env: simpy.Environment, workload: WorkloadConfig, specs: Iterator[RequestSpec]
    ) -> None:
        self.env = env
        self.workload = workload
        self.requests: list[Request] = []
        self.rejected: set[Request] = set()
        self.num_in_flight = 0
        self._specs = specs
        self._engine: Engine | None = None

    def start(self, engine: Engine) -> None:
        """Begin to send, at the present instant."""
        self._engine = engine
        if self.workload.mode == "open":
            self.env.process(self._send_on_time(engine))
        else:
            for _ in range(self.workload.concurrency or 0):
                self._send_next(engine)

    def on_finished(self, request: Request) -> None:
        """Take note that ``request`` has finished now; in a closed loop send its successor."""
        self.num_in_flight -= 1
        if self.workload.mode == "closed" and self._engine is not None:
            self._send_next(self._engine)

    def _send_on_time(self, engine: Engine) -> Generator[Event, None, None]:
        for spec in self._specs:
            yield self.env.timeout(spec.arrival_ns - int(self.env.now))
            self._send(engine, spec)

    def _send_next(self, engine: Engine) -> None:
        spec = next(self._specs, None)
        if spec is not None:
            self._send(engine, spec)

    def _send(self, engine: Engine, spec: RequestSpec) -> None:
        request = Request(
            request_id=spec.request_id,
            arrival_ns=int(self.env.now),
            num_prompt_tokens=spec.input_length,
            output_length=spec.output_length,
            adapter=spec.adapter,
        )
        self.requests.append(request)
        if spec.input_length + spec.output_length > engine.config.max_model_len:
            self.rejected.add(request)
        else:
            self.num_in_flight += 1
            engine.submit(request)
