"""What `Scheduler.schedule` has given KV blocks to in the step that it is putting together."""

from collections.abc import Callable
from typing import Any


class StepLog:
    """Records the calls of `KVCacheManager.allocate_slots`, the one place that both of schedule's loops pass.

    `num_running` counts the requests that hold a place, up to `max_num_seqs`; `max_tokens` is the step's
    token budget.
    """

    def __init__(self, num_running: Callable[[], int], max_num_seqs: int, max_tokens: int) -> None:
        self.requests: list[Any] = []
        """Those of the step, in order."""
        self.num_tokens = 0
        self._num_running, self._max_num_seqs, self._max_tokens = num_running, max_num_seqs, max_tokens

    def begin_step(self) -> None:
        """Forget the last step."""
        self.requests, self.num_tokens = [], 0

    def is_full(self) -> bool:
        """Whether `schedule` would break off before it tries another waiting request."""
        return self.num_tokens >= self._max_tokens or self._num_running() >= self._max_num_seqs

    def recording(self, allocate_slots: Callable[..., Any]) -> Callable[..., Any]:
        """Return `allocate_slots` such that what gets its blocks is noted."""

        def allocate_and_note(request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
            blocks = allocate_slots(request, num_new_tokens, *args, **kwargs)
            if blocks is not None:
                self.requests.append(request)
                self.num_tokens += num_new_tokens
            return blocks

        return allocate_and_note
