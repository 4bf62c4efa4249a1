"""First come, first served, and nothing overtakes."""

from collections.abc import Iterator

from policies.admission.arrival_lines import ArrivalLines
from policies.admission.protocol import AdmissionView, R


class FcfsStrict(ArrivalLines[R]):
    """A request whose adapter does not fit in the step holds up everything behind it.

    S-LoRA's queue does so (github.com/S-LoRA/S-LoRA, slora/server/router/req_queue.py: the first request that
    cannot be added ends the batch), and vLLM's before it learnt to skip.
    """

    def overtakes(self, request: R) -> bool:
        """Never."""
        return False

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        """Yield in order of arrival, up to the first that the step cannot take."""
        while (head := self._head()) is not None and view.accepts(head[2].adapter):
            yield head[2]
            if self._waits(head):
                return
