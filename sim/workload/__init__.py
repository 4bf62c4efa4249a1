"""What arrives: the requests of a run, from a WorkloadConfig and a seed and from nothing else.

The same stream is fed to the simulator and replayed on real hardware. One file per arrival process
(``arrivals/``), adapter popularity (``popularity/``), distribution of lengths (``lengths/``) and trace
format (``traces/``).
"""

from sim.workload.config import WorkloadConfig
from sim.workload.generate import Traffic, adapter_name, requests, traffic
from sim.workload.spec import RequestSpec

__all__ = ["RequestSpec", "Traffic", "WorkloadConfig", "adapter_name", "requests", "traffic"]
