"""Prompts wait for one another, as long as a step hardly takes longer with all of them than with one."""

from collections import Counter
from collections.abc import Iterator

from policies.admission.fcfs_skip import FcfsSkip
from policies.admission.protocol import AdmissionView, R
from policies.view import EngineView

MOST_PROMPTS = 16
"""So many prompts of the first one's length are thought of as one step, at most."""


class Amortize(FcfsSkip[R]):
    """vLLM's order, but a step takes prompts in only when that is worth while, by the profile's own costs.

    A step with a prompt costs everybody who decodes: above the captured sizes it runs without a graph and is
    bound by the host's launches, whether it has one prompt in it or several, and every change of the batch
    makes the host wait for the GPU. So what could be admitted is held back until it makes up the number of
    tokens that has `worth` of the best ratio of tokens to added time, or until it has waited for `hold_ms`;
    when nothing runs, not at all. It is batching with a setup time, where the setup is a prompt's step.

    An adapter that is not in the batch needs a slot. What waits for one counts only as far as slots are free.
    """

    def __init__(self, hold_ms: float = 200.0, worth: float = 0.9) -> None:
        super().__init__()
        self._hold_ns = round(hold_ms * 1e6)
        self._worth = worth
        self._tokens: Counter[str | None] = Counter()
        """Prompt tokens that wait, by adapter; those with none are left out."""
        self._num_tokens = 0
        self._since_ns: int | None = None
        """Since when something has been held back."""
        self._enough: dict[int, int] = {}
        self._engine: EngineView | None = None

    def bind(self, engine: EngineView) -> None:
        """Its costs decide, and its clock."""
        self._engine = engine

    def _insert(self, request: R, place: object) -> None:
        super()._insert(request, place)
        self._count(request, request.num_prompt_tokens)

    def remove(self, request: R) -> None:
        """Forget a waiting request. Raises KeyError if it is not waiting."""
        super().remove(request)
        self._count(request, -request.num_prompt_tokens)

    def _count(self, request: R, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._tokens[request.adapter] += num_tokens
        if not self._tokens[request.adapter]:
            del self._tokens[request.adapter]

    def overtakes(self, request: R) -> bool:
        """It never does, but it may be what the others have been waiting for."""
        return True

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield in vLLM's order, or nothing yet."""
        if self._is_due(view):
            self._since_ns = None
            yield from super().candidates(view)

    def next_change_ns(self) -> int | None:
        """When what is held back has waited long enough."""
        return None if self._since_ns is None else self._since_ns + self._hold_ns

    def _is_due(self, view: AdmissionView) -> bool:
        engine, first = self._engine, self._head()
        if engine is None or first is None or not engine.running:
            return True
        num_tokens = self._admissible_tokens(view)
        if not num_tokens:
            self._since_ns = None
            return True
        if self._since_ns is None:
            self._since_ns = engine.now_ns
        if engine.now_ns - self._since_ns >= self._hold_ns:
            return True
        return num_tokens >= self._enough_tokens(engine, first[2].num_prompt_tokens)

    def _admissible_tokens(self, view: AdmissionView) -> int:
        """Prompt tokens that would find a slot: of the batch's adapters, and of as many as slots are free."""
        own = sum(self._tokens.get(adapter, 0) for adapter in (None, *view.scheduled_loras))
        others, rest = len(self._tokens), self._num_tokens - own
        num_free = view.max_loras - len(view.scheduled_loras)
        return own + (rest if num_free >= others else rest * num_free // others)

    def _enough_tokens(self, engine: EngineView, num_prompt_tokens: int) -> int:
        """The fewest tokens, in prompts of this length, whose ratio to the time that they add is good."""
        enough = self._enough.get(num_prompt_tokens)
        if enough is None:
            enough = self._enough[num_prompt_tokens] = self._good_number(engine, max(1, num_prompt_tokens))
        return enough

    def _good_number(self, engine: EngineView, length: int) -> int:
        num_reqs = min(engine.max_num_seqs, engine.max_loras)
        bare_ns = engine.costs.step_ns(num_reqs, num_reqs)
        room = engine.max_num_batched_tokens - num_reqs
        counts = [n * length for n in range(1, MOST_PROMPTS + 1) if n == 1 or n * length <= room]
        added_ns = [max(1, engine.costs.step_ns(num_reqs, num_reqs, count) - bare_ns) for count in counts]
        ratios = [count / time_ns for count, time_ns in zip(counts, added_ns, strict=True)]
        good = self._worth * max(ratios)
        return next(count for count, ratio in zip(counts, ratios, strict=True) if ratio >= good)
