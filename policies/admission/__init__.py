"""Admission policies: which waiting requests to try, and in which order."""

from policies.admission.adapter_cycle import AdapterCycle
from policies.admission.amortize import Amortize
from policies.admission.credit import Credit
from policies.admission.drain import Drain
from policies.admission.fair import Fair
from policies.admission.fcfs_skip import FcfsSkip
from policies.admission.fcfs_strict import FcfsStrict
from policies.admission.one_queue import OneQueue
from policies.admission.priority import Priority
from policies.admission.protocol import AdmissionPolicy, AdmissionView, WaitingRequest
from policies.admission.time_slice import TimeSlice
from policies.admission.vllm import vllm_queue
from policies.admission.weighted_size import WeightedSize
from policies.admission.working_set import WorkingSet

__all__ = [
    "AdapterCycle",
    "AdmissionPolicy",
    "AdmissionView",
    "Amortize",
    "Credit",
    "Drain",
    "Fair",
    "FcfsSkip",
    "FcfsStrict",
    "OneQueue",
    "Priority",
    "TimeSlice",
    "WaitingRequest",
    "WeightedSize",
    "WorkingSet",
    "vllm_queue",
]
