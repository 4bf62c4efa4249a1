"""One request as its client saw it, on a server or in the simulator."""

from dataclasses import dataclass, field, replace

COMPLETED = "completed"
UNFINISHED = "unfinished"
"""Neither complete nor failed when the run ended."""

S_TO_MS = 1e3


@dataclass(slots=True)
class RequestRecord:
    """One request. Times in s since the run began; None is what has not happened."""

    request_id: str
    adapter: str | None
    """Null: the base model."""
    arrival_s: float
    """When it was meant to be sent. Latencies count from here, so that a client that falls behind does not
    hide the waiting (coordinated omission)."""
    sent_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    input_length: int | None = None
    num_generated_tokens: int = 0
    tokens_from: str | None = None
    """Who counted the generated tokens: the server (`usage`) or, a token a chunk, the client (`chunks`)."""
    status: str = UNFINISHED
    """COMPLETED, UNFINISHED, or how it failed: `timeout`, `aborted` (the client gave up), `connect_timeout`,
    `connection_error`, `disconnected`, `http_<status>`, `bad_answer`; in the simulator also `rejected`."""
    message: str = ""
    text: str = ""
    """The answer, where it is kept."""

    @property
    def is_failed(self) -> bool:
        """Whether the request has ended, but not with its answer."""
        return self.status not in (COMPLETED, UNFINISHED)

    @property
    def e2el_ms(self) -> float | None:
        """End-to-end latency of a completed request, from when it was meant to be sent."""
        if self.finish_s is None or self.status != COMPLETED:
            return None
        return S_TO_MS * (self.finish_s - self.arrival_s)

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token, from when it was meant to be sent."""
        return None if self.first_token_s is None else S_TO_MS * (self.first_token_s - self.arrival_s)

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first, of a completed request with at least two."""
        if self.first_token_s is None or self.finish_s is None or self.num_generated_tokens < 2:
            return None
        return S_TO_MS * (self.finish_s - self.first_token_s) / (self.num_generated_tokens - 1)

    @property
    def send_lag_ms(self) -> float | None:
        """How late the client was."""
        return None if self.sent_s is None else S_TO_MS * (self.sent_s - self.arrival_s)


@dataclass(frozen=True)
class Run:
    """The requests of one run in order of arrival."""

    mode: str
    """`baseline` (all requests ask for one adapter) or `multi` (each for its own)."""
    records: list[RequestRecord]
    duration_s: float
    """From the run's beginning to the end of its last request."""
    end: str = "done"
    """Why it ended: `done`, `interrupted`, or what made it stop early."""
    client_lags_ms: list[float] = field(default_factory=list)
    """How late the client's own clock went off, asked over and over: what it adds to the times it takes."""

    def after(self, warmup_s: float) -> "Run":
        """Return the part that was meant to be sent from `warmup_s` on."""
        kept = [record for record in self.records if record.arrival_s >= warmup_s]
        return replace(self, records=kept, duration_s=max(0.0, self.duration_s - warmup_s))
