"""What arrives: the requests of a run, drawn from a WorkloadConfig and a seed and from nothing else.

The same stream is fed to the simulator and replayed on real hardware. One file per arrival process
(``arrivals/``) and per adapter popularity (``popularity/``).
"""

from sim.workload.config import WorkloadConfig
from sim.workload.generate import RequestSpec, adapter_name, requests

__all__ = ["RequestSpec", "WorkloadConfig", "adapter_name", "requests"]
