"""The simulated engines as a server sees them: calls go in, outputs come out, as the clock says."""

import traceback
from http import HTTPStatus
from itertools import count

from simpy import Environment

from sim.metrics import NS_PER_S
from sim.request import Request
from sim.serve.calls import Call
from sim.serve.clock import Clock
from sim.serve.config import ServeConfig
from sim.serve.driver import Driver
from sim.serve.engines import make_replicas, make_router
from sim.serve.errors import ApiError
from sim.serve.instruments import Instruments
from sim.serve.metrics import ReplicaMetrics, show_lora_requests
from sim.serve.models import ServedModels
from sim.serve.observer import ServingObserver
from sim.serve.outputs import Family, Generation, Output
from sim.serve.prompts import Prompt, prefix_hashes
from sim.serve.swaps import SwapStats


class Backend:
    """The engines, their requests in flight, and what is known of both.

    ``clock`` None: one that starts now and runs at ``serve.speed``. Raises UserError and DoesNotFit.
    """

    def __init__(self, config: ServeConfig, clock: Clock | None = None) -> None:
        engine, server = config.engine, config.serve
        self.config = config
        self.clock = clock or Clock(server.speed)
        self.env = Environment()
        self.models = ServedModels(
            config.model_name, config.model.name, server.adapter_names, engine.max_model_len
        )
        self.swaps = SwapStats(len(engine.warm_slots), config.replicas)
        self.instruments = Instruments(engine.max_model_len)
        self.metrics = [
            ReplicaMetrics(self.instruments, config.model_name, number) for number in range(config.replicas)
        ]
        self.failure: Exception | None = None
        """What has ended the simulation."""
        self._outputs: dict[Request, Output] = {}
        observers = [ServingObserver(self._outputs, metrics, self.swaps) for metrics in self.metrics]
        self.replicas = make_replicas(self.env, config, observers)
        for number, replica in enumerate(self.replicas):
            self.instruments.describe_cache(engine, replica.num_gpu_blocks, number)
        self._driver = Driver(self.env, self.clock)
        self._router = make_router(config, self.replicas)
        self._generations: set[Generation] = set()
        self._numbers = count()
        lengths = server.output_length
        self._output_length = None if lengths is None else lengths.sampler(config.seed, "output_length")

    @property
    def num_calls(self) -> int:
        """Calls in flight."""
        return len(self._generations)

    async def run(self) -> None:
        """Let time pass until cancelled. Where the simulation fails, so does all that is in flight."""
        try:
            await self._driver.run()
        except Exception as error:
            self._fail(error)

    def submit(self, call: Call) -> Generation:
        """Send a call's requests to the engines, now; `release` must follow.

        Raises ApiError: 400 for what cannot be served, 429 where too many requests wait.
        """
        max_model_len = self.config.engine.max_model_len
        limits = [call.most_tokens(prompt, max_model_len) for prompt in call.prompts]
        self.catch_up()
        self._check_room(call.num_requests)
        generation = Generation(call.num_prompt_tokens)
        self._generations.add(generation)
        for prompt, max_tokens in zip(call.prompts, limits, strict=True):
            hashes = self._prefix_hashes(call, prompt)
            family = Family(call.n)
            for _ in range(call.n):
                request = self._request(call, prompt, max_tokens, hashes)
                self._send(request, family, generation)
        if self.config.serve.request_timeout_s is not None:
            time_out = self.env.timeout(round(self.config.serve.request_timeout_s * NS_PER_S))
            time_out.callbacks.append(lambda _: self._time_out(generation))
        self._driver.wake()
        return generation

    def release(self, generation: Generation) -> None:
        """Let a call go, now: its client has all, or has gone. What is left of it is aborted."""
        if generation in self._generations:
            self._generations.remove(generation)
            if self.failure is None and not generation.is_complete:
                self.catch_up()
                self._abort(generation)

    def stop(self, reason: str) -> None:
        """End all that is in flight with an error (503)."""
        for generation in list(self._generations):
            generation.fail(ApiError(HTTPStatus.SERVICE_UNAVAILABLE, reason))
            self.release(generation)

    def outside_range(self) -> list[str]:
        """Return a sentence for each range that the profile was measured in and that was left so far."""
        return list(dict.fromkeys(text for each in self.replicas for text in each.profile.outside_range()))

    def metrics_now(self) -> Instruments:
        """Return the metrics as they are at this instant."""
        if self.failure is None:
            self.catch_up()
        for metrics, replica in zip(self.metrics, self.replicas, strict=True):
            metrics.show_state(replica.state, replica.kv_cache_usage)
        show_lora_requests(self.instruments, self._outputs.values(), self.config.engine.max_loras)
        return self.instruments

    def catch_up(self) -> None:
        """Bring the simulation up to this instant. Raises ApiError (500) where it has failed."""
        if self.failure is None:
            try:
                self._driver.catch_up()
            except Exception as error:
                self._fail(error)
        if self.failure is not None:
            raise _dead(self.failure)

    def _fail(self, error: Exception) -> None:
        traceback.print_exception(error)
        self.failure = error
        for generation in self._generations:
            generation.fail(_dead(error))

    def _check_room(self, num_requests: int) -> None:
        num_waiting = sum(replica.state.num_waiting for replica in self.replicas)
        limit = self.config.serve.max_queued_requests
        if num_waiting + num_requests > limit:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{num_waiting} requests are waiting and {num_requests} more would be; "
                f"at most {limit} may (serve.max_queued_requests)",
                headers={"Retry-After": "1"},
            )

    def _prefix_hashes(self, call: Call, prompt: Prompt) -> tuple[int, ...]:
        engine = self.config.engine
        if not engine.enable_prefix_caching:
            return ()
        return prefix_hashes(prompt, engine.block_size, call.cache_salt)

    def _request(self, call: Call, prompt: Prompt, max_tokens: int, hashes: tuple[int, ...]) -> Request:
        output_length = max_tokens
        if self._output_length is not None and not call.ignore_eos:
            output_length = min(max(self._output_length(call.adapter), call.min_tokens), max_tokens)
        return Request(
            request_id=f"request-{next(self._numbers):06d}",
            arrival_ns=int(self.env.now),
            num_prompt_tokens=prompt.num_tokens,
            output_length=output_length,
            max_tokens=max_tokens,
            adapter=call.adapter,
            priority=call.priority,
            prefix_hashes=hashes,
        )

    def _send(self, request: Request, family: Family, generation: Generation) -> None:
        replica = self._router.route(request)
        output = Output(request, replica, family, generation.news)
        self._outputs[request] = output
        generation.outputs.append(output)
        self._router.engines[replica].submit(request)

    def _time_out(self, generation: Generation) -> None:
        if generation in self._generations and not generation.is_complete:
            seconds = self.config.serve.request_timeout_s
            message = f"not complete after {seconds:g} s (serve.request_timeout_s)"
            generation.fail(ApiError(HTTPStatus.GATEWAY_TIMEOUT, message))
            self._abort(generation)

    def _abort(self, generation: Generation) -> None:
        """Take what is left of a call out of the engines."""
        for output in generation.outputs:
            if output.finish_reason is None:
                self._router.engines[output.replica].abort(output.request)
                del self._outputs[output.request]
                output.finish()
                self.metrics[output.replica].count_abort()
        self._driver.wake()


def _dead(error: Exception) -> ApiError:
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"the simulation has failed: {error!r}")
