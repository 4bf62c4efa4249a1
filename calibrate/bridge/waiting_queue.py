"""vLLM's `waiting` and `skipped_waiting` queues, in front of an admission policy.

How `Scheduler.schedule` uses them, and what follows:

* It goes on while `waiting or skipped_waiting`. Within a step `bool(waiting)` therefore says whether the
  policy has another candidate, so a policy that holds requests back ends the loop. Where the step is full the
  policy is not asked, as the simulator does not ask it: a policy may change with each question.
* It peeks at a request, pops it, and only then makes it run or, where it cannot, puts it into a queue of its
  own, with which it ends up in `skipped_waiting.prepend_requests`. So a popped request is the policy's until
  it is seen to run: then the policy is told to `admit` it, before it is asked for the next candidate; else it
  was passed over, and still waits.
* Requests that wait for something else (a grammar, more input) are kept out of the policy's sight in
  `BlockedQueue`, and arrive when they are ready. Plain vLLM would try them before requests that came earlier.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from calibrate.bridge.live_engine import LiveEngine
from calibrate.bridge.live_request import LiveRequest
from calibrate.bridge.step_log import StepLog
from policies.admission import AdmissionPolicy, AdmissionView


class WaitingObserver:
    """Told of requests that come to wait and cease to; says which may be offered to the policy."""

    def on_arrival(self, request: LiveRequest) -> None:
        """`request` waits now: it has arrived, or was preempted."""

    def on_departure(self, request: LiveRequest) -> None:
        """`request` waits no longer: it was admitted, or aborted."""

    def is_ready(self, adapter: str) -> bool:
        """Whether a request for `adapter` could run at once."""
        return True


class PolicyQueue:
    """vLLM's `waiting`: the requests that the policy holds, and those whose adapter is still to come.

    `describe` makes the policy's view of a request of vLLM's, `runs` says whether one has been admitted.
    """

    def __init__(
        self,
        admission: AdmissionPolicy[LiveRequest],
        engine: LiveEngine,
        step: StepLog,
        describe: Callable[[Any], LiveRequest],
        runs: Callable[[Any], bool],
    ) -> None:
        self.admission = admission
        self.observer = WaitingObserver()
        self._engine, self._step, self._describe, self._runs = engine, step, describe, runs
        self._requests: dict[Any, LiveRequest] = {}
        self._held: dict[str, dict[LiveRequest, bool]] = {}
        self._num_held = 0
        self._view: AdmissionView | None = None
        self._candidates: Iterator[LiveRequest] = iter(())
        self._offered: LiveRequest | None = None
        self._popped: LiveRequest | None = None
        self._in_step = False
        self.offered_any = False
        """Whether the policy has offered anybody in the last step in which it was asked."""

    def add_request(self, request: Any) -> None:
        """Take in a request that has just arrived, or whose session goes on."""
        self.leave(request)
        live = self._requests[request] = self._describe(request)
        self._arrive(live, preempted=False)

    def prepend_request(self, request: Any) -> None:
        """Take back a request that was preempted."""
        live = self._requests[request]
        live.waiting = True
        self._engine.on_stop(live)
        self._arrive(live, preempted=True)

    def prepend_requests(self, requests: Any) -> None:
        """Take back requests that were preempted."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Any) -> None:
        """Forget a waiting request."""
        live = self._requests.get(request)
        if live is None or not live.waiting:
            return
        del self._requests[request]
        self._engine.on_give_up(live)
        if not self._drop_held(live):
            self.admission.remove(live)
        self.observer.on_departure(live)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Forget those of the requests that wait here."""
        for request in requests:
            self.remove_request(request)

    def leave(self, request: Any) -> None:
        """A request leaves the engine, whether it waits or runs."""
        live = self._requests.get(request)
        if live is None:
            return
        if live.waiting:
            self.remove_request(request)
            return
        del self._requests[request]
        self._engine.on_stop(live)
        self.admission.on_finish(live)

    def begin_step(self) -> None:
        """`Scheduler.schedule` begins."""
        self._in_step, self._view = True, None
        self._offered = self._popped = None

    def end_step(self) -> None:
        """`Scheduler.schedule` has ended."""
        self._settle()
        self._in_step, self._candidates = False, iter(())

    def peek_request(self) -> Any:
        """Return the request to try next. Raises IndexError where there is none."""
        offered = self._offer()
        if offered is None:
            raise IndexError("peek from an empty queue")
        return offered.request

    def pop_request(self) -> Any:
        """Hand out the request to try next; it runs after this, or is passed over."""
        request = self.peek_request()
        self._popped, self._offered = self._offered, None
        return request

    def live(self, request: Any) -> LiveRequest | None:
        """Return the policy's view of a request of this engine."""
        return self._requests.get(request)

    def release(self, adapter: str) -> None:
        """Requests for `adapter` can run now."""
        held = self._held.pop(adapter, {})
        self._num_held -= len(held)
        for live, preempted in held.items():
            (self.admission.requeue if preempted else self.admission.add)(live)

    def release_all(self) -> None:
        """No request is held any more."""
        for adapter in list(self._held):
            self.release(adapter)

    def _arrive(self, live: LiveRequest, preempted: bool) -> None:
        self._engine.on_wait(live)
        self.observer.on_arrival(live)
        if live.adapter is not None and not self.observer.is_ready(live.adapter):
            self._hold(live, preempted)
        elif preempted:
            self.admission.requeue(live)
        else:
            self.admission.add(live)

    def _hold(self, live: LiveRequest, preempted: bool) -> None:
        assert live.adapter is not None
        self._held.setdefault(live.adapter, {})[live] = preempted
        self._num_held += 1

    def _drop_held(self, live: LiveRequest) -> bool:
        held = self._held.get(live.adapter or "", {})
        if live not in held:
            return False
        del held[live]
        self._num_held -= 1
        return True

    def _offer(self) -> LiveRequest | None:
        """Return the candidate to try now; the next one, if the last was popped."""
        self._settle()
        if self._offered is not None:
            return self._offered
        if self._view is None:
            if not len(self.admission):
                return None
            scheduled = (self._requests[request].adapter for request in self._step.requests)
            loras = {adapter: None for adapter in scheduled if adapter is not None}
            self._view = AdmissionView(self._engine.max_loras, loras)
            self._candidates = self.admission.candidates(self._view)
            self.offered_any = False
        for live in self._candidates:
            self.offered_any = True
            if self._view.accepts(live.adapter):
                self._offered = live
                return live
        return None

    def _settle(self) -> None:
        """Tell the policy what has become of the request that was popped."""
        live, self._popped = self._popped, None
        if live is None or not self._runs(live.request):
            return
        self.admission.admit(live)
        live.waiting = False
        self._engine.on_run(live)
        self.observer.on_departure(live)
        if live.adapter is not None:
            assert self._view is not None and isinstance(self._view.scheduled_loras, dict)
            self._view.scheduled_loras[live.adapter] = None

    def __bool__(self) -> bool:
        if not self._in_step or self._step.is_full():
            return len(self) > 0
        return self._offer() is not None

    def __len__(self) -> int:
        return len(self.admission) + self._num_held

    def __iter__(self) -> Iterator[Any]:
        return (live.request for live in self._requests.values() if live.waiting)


class BlockedQueue(list[Any]):
    """vLLM's `skipped_waiting`: requests that wait for something else than their turn.

    Empty as a truth value, since `schedule` has nothing to try here.
    """

    def __init__(self, on_block: Callable[[Any], None]) -> None:
        super().__init__()
        self._on_block = on_block

    def add_request(self, request: Any) -> None:
        """Take in a request that cannot be scheduled yet."""
        self._on_block(request)
        self.append(request)

    def prepend_requests(self, requests: Any) -> None:
        """Leave alone what `schedule` has passed over: the policy still holds it."""

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Forget those of the requests that wait here."""
        gone = set(requests)
        self[:] = [request for request in self if request not in gone]

    def __bool__(self) -> bool:
        return False
