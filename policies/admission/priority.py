"""The most urgent first, passing over requests whose adapter does not fit in the step."""

from policies.admission.adapter_lines import AdapterLines
from policies.admission.protocol import R


class Priority(AdapterLines[R]):
    """vLLM's `waiting` and `skipped_waiting` queues with `policy=priority` (vllm/v1/core/sched).

    Both are heaps by `Request.__lt__`: the smaller `priority`, then the earlier arrival, then the smaller id.
    The scheduler takes the smaller of the two heads, so both together are one heap, and a preempted request
    has no special place in it.
    """

    def add(self, request: R) -> None:
        """Insert by urgency."""
        self._insert(request, (request.priority, request.arrival_ns, request.request_id))

    def requeue(self, request: R) -> None:
        """Insert by urgency."""
        self.add(request)
