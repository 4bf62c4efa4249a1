"""How an engine comes to another adapter where it has no slots: one process at a time, which is exchanged."""

from collections.abc import Callable, Iterator

from policies.admission import AdmissionPolicy, AdmissionView
from policies.view import EngineView
from sim.config import SwapConfig
from sim.costs import CostModel, StepCost, StepShape
from sim.request import Request


class OneProcess(AdmissionPolicy[Request]):
    """Around an admission policy: requests for another adapter than the one that is served wait until nothing
    runs (the drain), and what the engine had in its KV cache is lost with the process.
    """

    def __init__(
        self, policy: AdmissionPolicy[Request], served: str | None, on_exchange: Callable[[], None]
    ) -> None:
        self._policy = policy
        self._served = served
        self._on_exchange = on_exchange
        self._num_running = 0

    def bind(self, engine: EngineView) -> None:
        """Pass it on."""
        self._policy.bind(engine)

    def add(self, request: Request) -> None:
        """Pass it on."""
        self._policy.add(request)

    def requeue(self, request: Request) -> None:
        """It runs no longer."""
        self._num_running -= 1
        self._policy.requeue(request)

    def overtakes(self, request: Request) -> bool:
        """Pass it on."""
        return self._policy.overtakes(request)

    def remove(self, request: Request) -> None:
        """Pass it on."""
        self._policy.remove(request)

    def candidates(self, view: AdmissionView) -> Iterator[Request]:
        """Yield the policy's candidates as far as they need no exchange, or nothing runs."""
        for request in self._policy.candidates(view):
            if request.adapter not in (None, self._served):
                if self._num_running:
                    continue
                self._served = request.adapter
                self._on_exchange()
            yield request

    def admit(self, request: Request) -> None:
        """It runs."""
        self._num_running += 1
        self._policy.admit(request)

    def on_finish(self, request: Request) -> None:
        """It runs no longer."""
        self._num_running -= 1
        self._policy.on_finish(request)

    def next_change_ns(self) -> int | None:
        """As the policy says: a drain ends when a request finishes, which ends any run of steps."""
        return self._policy.next_change_ns()

    def __len__(self) -> int:
        return len(self._policy)


class ProcessCosts:
    """A cost model in which an adapter is activated by stopping a process and starting another.

    The adapter's weights come with the process, so that a load takes no time of its own. The first process of
    all has none to stop before it.
    """

    def __init__(self, costs: CostModel, swap: SwapConfig, is_running: bool) -> None:
        self._costs = costs
        self._swap = swap
        self._is_running = is_running

    def step(self, shape: StepShape) -> StepCost:
        """As it is."""
        return self._costs.step(shape)

    def load_ns(self, grows: bool, rank: int) -> int:
        """Return 0."""
        return 0

    def activate_ns(self, rank: int) -> int:
        """Time of the exchange that happens now."""
        stop_ns = self._swap.stop_ns if self._is_running else 0
        self._is_running = True
        return stop_ns + self._swap.start_ns

    def copy_ns(self, rank: int) -> int:
        """Return 0."""
        return 0

    def mean_load_ns(self, grows: bool, rank: int) -> int:
        """Return 0."""
        return 0

    def mean_activate_ns(self, rank: int) -> int:
        """Time of an exchange."""
        return self._swap.stop_ns + self._swap.start_ns
