"""The fallback: a hosted provider that answers in place of the replicas, at its own pace and price."""

from collections.abc import Callable

from simpy import Environment

from sim.config import FallbackConfig
from sim.metrics import NS_PER_MS
from sim.request import Request, RequestStatus


class Fallback:
    """Answers each request as if it were alone there. ``on_finished`` is told of each answer."""

    def __init__(
        self, env: Environment, config: FallbackConfig, on_finished: Callable[[Request], None]
    ) -> None:
        self.env = env
        self.config = config
        self.on_finished = on_finished
        self.requests: dict[Request, int] = {}
        """All that it was asked, and when, in ns."""
        self._ttft_ns = round(config.ttft_ms * NS_PER_MS)
        self._tpot_ns = round(config.tpot_ms * NS_PER_MS)

    def submit(self, request: Request) -> None:
        """Begin to answer a request, now."""
        self.requests[request] = int(self.env.now)
        request.status = RequestStatus.RUNNING
        num_tokens = request.final_num_tokens - request.num_prompt_tokens
        answer = self.env.timeout(self._ttft_ns + (num_tokens - 1) * self._tpot_ns)
        answer.callbacks.append(lambda _: self._finish(request))

    def abort(self, request: Request) -> None:
        """Let go of a request whose client has gone."""
        self._note_progress(request)
        request.abort_ns, request.status = int(self.env.now), RequestStatus.FINISHED_ABORTED

    def settle(self) -> None:
        """Bring everything up to date when the simulation has stopped."""
        for request in self.requests:
            if not request.is_finished:
                self._note_progress(request)

    def usd(self) -> float:
        """Return the bill so far: for every request, its prompt, and the tokens that it got."""
        return sum(self.config.usd(r.num_prompt_tokens, r.num_output_tokens) for r in self.requests)

    def _finish(self, request: Request) -> None:
        if not request.is_finished:
            self._note_progress(request)
            request.finish_ns, request.status = int(self.env.now), RequestStatus.FINISHED_STOPPED
            self.on_finished(request)

    def _note_progress(self, request: Request) -> None:
        """Write down which tokens it has now."""
        since_first_ns = int(self.env.now) - self.requests[request] - self._ttft_ns
        if since_first_ns < 0:
            return
        request.first_token_ns = self.requests[request] + self._ttft_ns
        further = since_first_ns // self._tpot_ns if self._tpot_ns else request.final_num_tokens
        request.num_tokens = min(request.num_prompt_tokens + 1 + further, request.final_num_tokens)
        known = request.num_output_tokens - 1
        request.last_token_ns = request.first_token_ns + known * self._tpot_ns
