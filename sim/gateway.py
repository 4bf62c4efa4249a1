"""The gateway between the clients and the replicas: one address, whatever becomes of a replica."""

from collections.abc import Callable
from dataclasses import dataclass, field

from simpy import Environment

from sim.config import FailoverConfig
from sim.fallback import Fallback
from sim.ledger import Ledger
from sim.metrics import NS_PER_S
from sim.request import Request, RequestStatus
from sim.router import Router


@dataclass(eq=False)
class Gateway:
    """Passes each request on to a replica, or to the fallback where there is none for it.

    The replica ``failover.replica`` is lost at ``failover.at_s``, with all that it was about. For
    ``detect_s`` nobody knows: what it had, and what is still sent to it, gets no answer. Then the router
    leaves it out, and those requests begin again where ``failover.resend`` says, or end with an error. A
    request for which no replica is left, or none with fewer than the fallback's ``max_in_flight`` requests
    where the router wants it, goes to the fallback; without a fallback the former ends with an error.
    """

    env: Environment
    router: Router
    ledger: Ledger
    failover: FailoverConfig
    fallback: Fallback | None
    on_gone: Callable[[Request], None]
    """Told of each request that ends with an error."""
    num_resent: int = field(default=0, init=False)
    """Requests that a lost replica was given and that another one got then, or the fallback."""
    _silent: int | None = field(default=None, init=False)
    """A replica that is lost, which nobody knows."""
    _unanswered: list[int] = field(default_factory=list, init=False)
    """The numbers of the requests that it was given."""

    def __post_init__(self) -> None:
        if self.failover.at_s is not None:
            loss = self.env.timeout(round(self.failover.at_s * NS_PER_S))
            loss.callbacks.append(lambda _: self._lose(self.failover.replica))

    def send(self, number: int) -> None:
        """Pass a request of the ledger on."""
        request = self.ledger.requests[number]
        replica = self._replica_for(request)
        self.ledger.replicas[number] = replica
        if replica is None:
            self._send_elsewhere(request)
        elif replica == self._silent:
            self._leave_unanswered(number)
        else:
            self.router.engines[replica].submit(request)

    def abort(self, number: int) -> None:
        """Take back a request that has not ended, and whose client has gone."""
        request, replica = self.ledger.requests[number], self.ledger.replicas[number]
        if replica is None:
            assert self.fallback is not None
            self.fallback.abort(request)
        elif replica == self._silent:
            self._end(request)
        else:
            self.router.engines[replica].abort(request)

    def _replica_for(self, request: Request) -> int | None:
        """Return who gets a request; None: nobody of the replicas."""
        if not self.router.live:
            return None
        replica = self.router.route(request)
        if self.fallback is not None:
            most = self.fallback.config.max_in_flight
            if most is not None and self.router.states[replica].num_in_flight >= most:
                return None
        return replica

    def _send_elsewhere(self, request: Request) -> None:
        if self.fallback is None:
            self._fail(request)
        else:
            self.ledger.degraded.add(request)
            self.fallback.submit(request)

    def _fail(self, request: Request) -> None:
        self.ledger.failed.add(request)
        self._end(request)
        self.on_gone(request)

    def _end(self, request: Request) -> None:
        request.abort_ns, request.status = int(self.env.now), RequestStatus.FINISHED_ABORTED

    def _leave_unanswered(self, number: int) -> None:
        self._unanswered.append(number)
        self.router.states[self.failover.replica].num_unanswered += 1

    def _lose(self, replica: int) -> None:
        """The replica is gone, now."""
        engine = self.router.engines[replica]
        for number in self.ledger.in_flight_at(replica):
            engine.abort(self.ledger.requests[number])
            self.ledger.renew(number)
            self._leave_unanswered(number)
        engine.stop()
        self._silent = replica
        detection = self.env.timeout(round(self.failover.detect_s * NS_PER_S))
        detection.callbacks.append(lambda _: self._notice(replica))

    def _notice(self, replica: int) -> None:
        """The loss is known: its requests go elsewhere."""
        self._silent = None
        self.router.lose(replica)
        unanswered, self._unanswered = self._unanswered, []
        for number in unanswered:
            request = self.ledger.requests[number]
            if request.is_finished:
                continue
            self.ledger.replicas[number] = None
            if self.failover.resend == "none":
                self._fail(request)
                continue
            self.num_resent += 1
            if self.failover.resend == "replicas":
                self.send(number)
            else:
                self._send_elsewhere(request)
