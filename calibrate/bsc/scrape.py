"""Measure what the API server takes to write a line of its metrics: `python -m calibrate.bsc.scrape`.

The lines are those of `vllm:lora_requests_info`, one for each combination of waiting and running adapters,
as vLLM 0.8.5 writes them (vllm/v1/metrics/loggers.py, `PrometheusStatLogger.record`) and its server sends
them: by `prometheus_client`, compressed. It depends on the CPU, on the lengths of the adapters' names, and on
the versions: the study had Python 3.12, and vLLM 0.8.5 came with prometheus_client 0.21.
"""

import gzip
import json
import platform
import random
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from calibrate.bsc.settings import adapter_name
from sim.cli import hydra_entry
from sim.files import write_atomically

NUM_RUNNING = 32
"""Adapters that run at a time, of as many again that do not."""


def combinations(num_lines: int) -> Iterator[tuple[str, str]]:
    """Yield the waiting and the running adapters of steps in which one comes or goes."""
    rng = random.Random(0)
    names = [adapter_name(index) for index in range(2 * NUM_RUNNING)]
    running = set(names[:NUM_RUNNING])
    for _ in range(num_lines):
        changed = rng.choice(names)
        running ^= {changed}
        yield rng.choice(("", changed)), ",".join(name for name in names if name in running)


def measure(num_lines: int, repeats: int) -> float:
    """Return the least CPU time for a line, in ms, of an answer of about `num_lines`.

    The least, because whatever else the machine does can only add to it.
    """
    registry = CollectorRegistry()
    labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
    gauge = Gauge("vllm:lora_requests_info", "Running stats on lora requests.", labels, registry=registry)
    for waiting, running in combinations(num_lines):
        gauge.labels(NUM_RUNNING, waiting, running).set_to_current_time()
    durations = []
    for _ in range(repeats):
        begin_ns = time.thread_time_ns()
        answer = generate_latest(registry)
        gzip.compress(answer)
        durations.append(time.thread_time_ns() - begin_ns)
    return min(durations) / answer.count(b"\n") / 1e6


def task(cfg: DictConfig) -> None:
    """Measure and write the result."""
    result = {
        # One digit: CPUs of one kind differ by more than the next.
        "ms_per_line": float(f"{measure(cfg.num_lines, cfg.repeats):.1g}"),
        "num_lines": cfg.num_lines,
        "prometheus_client": version("prometheus_client"),
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
    }
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    print(f"{1e3 * result['ms_per_line']:.0f} us for a line, Python {result['python']}: {out}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_scrape", "calibrate.bsc.scrape")


if __name__ == "__main__":
    main()
