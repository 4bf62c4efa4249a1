"""vLLM's own waiting queue."""

from policies.admission.adapter_lines import AdapterLines
from policies.admission.fcfs_skip import FcfsSkip
from policies.admission.priority import Priority
from policies.admission.protocol import R


def vllm_queue(scheduling_policy: str) -> AdapterLines[R]:
    """Return the queue for vLLM's `--scheduling-policy`: `fcfs` or `priority` (`create_request_queue`).

    Raises ValueError for another.
    """
    if scheduling_policy not in ("fcfs", "priority"):
        raise ValueError(f"scheduling_policy={scheduling_policy!r}: expected fcfs or priority")
    return Priority() if scheduling_policy == "priority" else FcfsSkip()
