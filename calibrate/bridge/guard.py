"""Policies that may fail: what they answer is checked, and vLLM's own rule takes over from one that fails.

sim.policy.supervision asks the same of answers, but a failure ends the run there, and it judges by its clock
who starves. Here no request may be lost, and who waits too long is known only where the engine stands still.
"""

from collections.abc import Callable, Collection, Iterator

from calibrate.bridge.live_request import LiveRequest
from policies.admission import AdmissionPolicy, AdmissionView
from policies.errors import PolicyError, check_offer, wrong_answer
from policies.eviction import EvictionPolicy, TierView
from policies.view import EngineView

Report = Callable[[str, BaseException], None]
"""Told once of each policy that fails: what it is for, and how it failed."""


class GuardedAdmission:
    """An admission policy whose failure costs no request.

    Raises nothing of the policy's: on its first error `default`, vLLM's own order, takes over with every
    waiting request, preempted ones first as in vLLM, and the step goes on.
    """

    def __init__(
        self,
        policy: AdmissionPolicy[LiveRequest],
        default: Callable[[], AdmissionPolicy[LiveRequest]],
        report: Report,
    ) -> None:
        self._policy, self._default, self._report = policy, default, report
        self._waiting: dict[LiveRequest, bool] = {}
        self._failed = False

    def bind(self, engine: EngineView) -> None:
        """Introduce the engine to the policy."""
        self._engine = engine
        self._try(lambda: self._policy.bind(engine))

    def add(self, request: LiveRequest) -> None:
        """Take in a request that has just arrived."""
        self._try(lambda: self._policy.add(request))
        self._waiting[request] = False

    def requeue(self, request: LiveRequest) -> None:
        """Take back a request that was preempted."""
        self._try(lambda: self._policy.requeue(request))
        self._waiting[request] = True

    def overtakes(self, request: LiveRequest) -> bool:
        """Whether `request`, which arrives now, might be tried before one that waits already."""
        return self._policy.overtakes(request)

    def remove(self, request: LiveRequest) -> None:
        """Forget a waiting request."""
        self._try(lambda: self._policy.remove(request))
        del self._waiting[request]

    def admit(self, request: LiveRequest) -> None:
        """`request`, the last candidate, runs now."""
        self._try(lambda: self._policy.admit(request))
        del self._waiting[request]

    def on_finish(self, request: LiveRequest) -> None:
        """`request`, which was running, has left the engine."""
        self._try(lambda: self._policy.on_finish(request))

    def candidates(self, view: AdmissionView) -> Iterator[LiveRequest]:
        """Yield the requests to try; the caller admits one, or passes over it, before it asks on."""
        policy: AdmissionPolicy[LiveRequest] | None = None
        offered: set[LiveRequest] = set()
        while True:
            try:
                if policy is not self._policy:
                    policy, offers = self._policy, iter(self._policy.candidates(view))
                    offered = set()
                request = next(offers)
                check_offer(policy, request, self._waiting, offered)
            except StopIteration:
                return
            except Exception as error:
                self._fall_back(error)
                continue
            offered.add(request)
            yield request

    def check_stuck(self) -> None:
        """Nothing runs, and of those that wait nobody was offered: that may not last for ever."""
        change_ns: int | None = 0
        try:
            change_ns = self._policy.next_change_ns()
        except Exception as error:
            self._fall_back(error)
        if change_ns is None:
            why = f"nothing runs, {len(self)} wait, and it offers none and names no time when it will"
            self._fall_back(PolicyError(why))

    def next_change_ns(self) -> int | None:
        """When other candidates might be offered, though no request came or went."""
        return self._policy.next_change_ns()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._fall_back(error)
            call()

    def _fall_back(self, error: BaseException) -> None:
        if self._failed:
            raise error
        self._failed = True
        self._report("admission", error)
        self._policy = self._default()
        self._policy.bind(self._engine)
        for request in sorted(self._waiting, key=lambda request: not self._waiting[request]):
            self._policy.add(request)

    def __len__(self) -> int:
        return len(self._waiting)


class GuardedEviction:
    """An eviction policy of one tier; once it has failed, `victim` answers None, and vLLM chooses."""

    def __init__(self, policy: EvictionPolicy, tier_name: str, report: Report) -> None:
        self._policy: EvictionPolicy | None = policy
        self._name, self._report = f"eviction of the {tier_name}", report

    def bind(self, tier: TierView) -> None:
        """Introduce the tier to the policy."""
        self._try(lambda policy: policy.bind(tier))

    def on_miss(self, key: str) -> None:
        """`key` will be brought in."""
        self._try(lambda policy: policy.on_miss(key))

    def on_insert(self, key: str) -> None:
        """`key` has entered the tier."""
        self._try(lambda policy: policy.on_insert(key))

    def on_access(self, key: str) -> None:
        """`key` is used by the step."""
        self._try(lambda policy: policy.on_access(key))

    def on_remove(self, key: str) -> None:
        """`key` has left the tier."""
        self._try(lambda policy: policy.on_remove(key))

    def victim(self, needed: Collection[str], present: Collection[str], used: Collection[str]) -> str | None:
        """Return one of `present`, but none of `used`, which the step holds; None: the policy has failed."""
        key: str | None = None

        def ask(policy: EvictionPolicy) -> None:
            nonlocal key
            answer = policy.victim(needed)
            if answer not in present:
                raise wrong_answer(policy, answer, "which is not in the tier", present)
            if answer in used:
                allowed = [key for key in present if key not in used]
                raise wrong_answer(policy, answer, "which the same step brought in or used", allowed)
            key = answer

        self._try(ask)
        return key

    def _try(self, call: Callable[[EvictionPolicy], None]) -> None:
        if self._policy is None:
            return
        try:
            call(self._policy)
        except Exception as error:
            self._policy = None
            self._report(self._name, error)
