"""The outputs of requests on their way from the engines to a client."""

import asyncio
from dataclasses import dataclass, field

from sim.request import Request, RequestStatus
from sim.serve.errors import ApiError

FINISH_REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
}
"""As vLLM's (vllm/v1/request.py, `get_finished_reason`)."""


@dataclass(slots=True)
class Family:
    """The ``n`` requests for one prompt (vllm/v1/engine/parallel_sampling.py, `ParentRequest`)."""

    n: int
    num_finished: int = 0
    most_tokens: int = 0

    def add(self, num_tokens: int) -> None:
        """Take note that one of them has finished with so many tokens."""
        self.num_finished += 1
        self.most_tokens = max(self.most_tokens, num_tokens)

    @property
    def is_complete(self) -> bool:
        """Whether all have finished, and none was aborted."""
        return self.num_finished == self.n


@dataclass(eq=False, slots=True)
class Output:
    """What is known of a request's output. Times are ns of simulated time."""

    request: Request
    replica: int
    family: Family
    news: asyncio.Event
    """Set whenever there is more to tell, of this request or of another one of the same call."""
    num_tokens: int = 0
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    num_cached_tokens: int = 0
    """Of its prompt, those that were found in the prefix cache."""
    finish_reason: str | None = None

    def add_token(self, now_ns: int) -> None:
        """Take note of a further token."""
        self.num_tokens += 1
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        self.last_token_ns = now_ns
        self.news.set()

    def latencies_ns(self) -> tuple[int, int]:
        """Return the times from arrival to the first token, and to the last. It must have one."""
        assert self.first_token_ns is not None and self.last_token_ns is not None
        arrival_ns = self.request.arrival_ns
        return self.first_token_ns - arrival_ns, self.last_token_ns - arrival_ns

    def finish(self) -> None:
        """Take note that the request has left its engine."""
        self.finish_reason = FINISH_REASONS[self.request.status]
        if self.finish_reason != "abort":
            self.family.add(self.num_tokens)
        self.news.set()


@dataclass(eq=False)
class Generation:
    """The outputs of one call: one for each of its prompts, or ``n`` for each, in order."""

    num_prompt_tokens: int
    """Of its prompts, each counted once whatever ``n`` is."""
    outputs: list[Output] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: ApiError | None = None
    """Why it has ended before its time."""

    @property
    def is_complete(self) -> bool:
        """Whether all outputs have ended."""
        return all(output.finish_reason for output in self.outputs)

    def fail(self, error: ApiError) -> None:
        """End it with an error, unless it has ended."""
        if self.error is None and not self.is_complete:
            self.error = error
            self.news.set()

    async def more(self) -> None:
        """Wait until there is more to tell than at the last time. Raises the ApiError that has ended it."""
        await self.news.wait()
        self.news.clear()
        if self.error is not None:
            raise self.error

    async def complete(self) -> None:
        """Wait until all is known. Raises the ApiError that has ended it."""
        while self.error is not None or not self.is_complete:
            await self.more()
