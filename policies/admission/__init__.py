"""Admission policies: which waiting requests to try, and in which order."""

from policies.admission.fcfs_skip import FcfsSkip
from policies.admission.one_queue import OneQueue
from policies.admission.priority import Priority
from policies.admission.protocol import AdmissionPolicy, AdmissionView, WaitingRequest
from policies.admission.vllm import vllm_queue

__all__ = [
    "AdmissionPolicy",
    "AdmissionView",
    "FcfsSkip",
    "OneQueue",
    "Priority",
    "WaitingRequest",
    "vllm_queue",
]
