"""vLLM 0.8.5's waiting queue against a list that is searched from its head, as that version does."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from policies.admission import AdmissionView, OneQueue

MAX_LORAS = 2


@dataclass(eq=False)
class Waiting:
    adapter: str
    request_id: str = ""
    arrival_ns: int = 0
    priority: int = 0


@dataclass
class Searched:
    """`Scheduler.waiting` and the loop over it, requests in a list."""

    waiting: list[Waiting] = field(default_factory=list)

    def step(self, scheduled: list[str], budget: int) -> tuple[list[Waiting], int]:
        """Return what is admitted and how many are put back."""
        admitted, skipped, loras = [], [], list(dict.fromkeys(scheduled))
        while self.waiting and budget:
            request = self.waiting.pop(0)
            if len(loras) == MAX_LORAS and request.adapter not in loras:
                skipped.append(request)
                continue
            admitted.append(request)
            budget -= 1
            if request.adapter not in loras:
                loras.append(request.adapter)
        self.waiting = skipped + self.waiting
        return admitted, len(skipped)


actions = st.lists(
    st.one_of(
        st.sampled_from("abcd"),
        st.tuples(st.lists(st.sampled_from("abcd"), max_size=MAX_LORAS, unique=True), st.integers(1, 4)),
    ),
    max_size=60,
)


@given(actions)
def test_admits_and_passes_over_what_a_search_from_the_head_does(
    actions: list[str | tuple[list[str], int]],
) -> None:
    queue: OneQueue[Waiting] = OneQueue()
    searched = Searched()
    last: list[Waiting] = []
    for action in actions:
        if isinstance(action, str):
            request = Waiting(action)
            queue.add(request)
            searched.waiting.append(request)
            continue
        for preempted in last[-1:]:
            queue.requeue(preempted)
            searched.waiting.insert(0, preempted)
        scheduled, budget = action
        view = AdmissionView(MAX_LORAS, dict.fromkeys(scheduled))  # type: ignore[arg-type]
        admitted = []
        for request in queue.candidates(view):
            queue.admit(request)
            view.scheduled_loras[request.adapter] = None  # type: ignore[index]
            admitted.append(request)
            if len(admitted) == budget:
                break
        expected, num_skipped = searched.step(scheduled, budget)
        assert admitted == expected
        assert view.num_passed_over == num_skipped
        last = admitted
    assert len(queue) == len(searched.waiting)
