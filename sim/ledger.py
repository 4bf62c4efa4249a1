"""Every request of a run, and what has become of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sim.request import Request, RequestStatus

STATUSES = ("completed", "running", "waiting", "rejected", "aborted")
GATEWAY_STATUSES = ("degraded", "failed")
"""What else may become of a request behind a gateway (sim.gateway)."""


@dataclass(eq=False)
class Ledger:
    """The requests that clients have sent, in order of arrival; each is known by its number."""

    requests: list[Request] = field(default_factory=list)
    """Of one that was sent again, the last attempt: a request of its own, with the arrival of the first."""
    replicas: list[int | None] = field(default_factory=list)
    """Which replica each went to, at last; None: it was refused, or went elsewhere."""
    rejected: set[Request] = field(default_factory=set)
    """Refused by the server."""
    failed: set[Request] = field(default_factory=set)
    """Ended with an error, for want of a server."""
    degraded: set[Request] = field(default_factory=set)
    """Answered, or being answered, by the fallback instead of the adapter that was asked for."""
    lost: list[Request] = field(default_factory=list)
    """Attempts that ended with their replica."""

    def add(self, request: Request) -> int:
        """Take note of a request; returns its number."""
        self.requests.append(request)
        self.replicas.append(None)
        return len(self.requests) - 1

    def renew(self, number: int) -> None:
        """The attempt is lost: put a new one in its place, which has not begun."""
        self.lost.append(self.requests[number])
        self.requests[number] = replace(self.requests[number])

    def in_flight_at(self, replica: int) -> list[int]:
        """Return the numbers of the requests that a replica has not finished."""
        return [
            number
            for number, at in enumerate(self.replicas)
            if at == replica and not self.requests[number].is_finished
        ]

    def status_of(self, request: Request) -> str:
        """Return where a request is: one of STATUSES or GATEWAY_STATUSES."""
        if request in self.rejected:
            return "rejected"
        if request in self.failed:
            return "failed"
        if request.is_finished:
            if request.abort_ns is not None:
                return "aborted"
            return "degraded" if request in self.degraded else "completed"
        return "running" if request.status is RequestStatus.RUNNING else "waiting"

    def is_of_engines(self, request: Request) -> bool:
        """Say whether a request is for the engines to answer, as far as is known."""
        return not (request in self.rejected or request in self.failed or request in self.degraded)

    def counts(self, requests: Sequence[Request], has_gateway: bool) -> dict[str, int]:
        """Return how many there are and of each status, over the whole run, warm-up included."""
        found = Counter(self.status_of(request) for request in requests)
        statuses = STATUSES + GATEWAY_STATUSES * has_gateway
        return {"submitted": len(requests)} | {status: found[status] for status in statuses}
