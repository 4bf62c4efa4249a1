"""Admission policies: which waiting requests to try, and in which order."""

from policies.admission.fcfs_skip import FcfsSkip
from policies.admission.protocol import AdmissionPolicy, AdmissionView, WaitingRequest

__all__ = ["AdmissionPolicy", "AdmissionView", "FcfsSkip", "WaitingRequest"]
