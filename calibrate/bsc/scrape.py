"""Measure what the API server takes to write a line of its metrics: `python -m calibrate.bsc.scrape`.

The lines are those of `vllm:lora_requests_info`, one for each combination of waiting and running adapters,
as vLLM 0.8.5 writes them (vllm/v1/metrics/loggers.py, `PrometheusStatLogger.record`) and its server sends
them: by `prometheus_client`, compressed. It depends on the CPU, on the lengths of the adapters' names, and on
the versions: the study had Python 3.12, and vLLM 0.8.5 came with prometheus_client 0.21.
"""

import gzip
import random
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from calibrate.bsc.host_cost import least_ns, write_cost
from calibrate.bsc.settings import adapter_name
from sim.cli import hydra_entry

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
    """Return the least CPU time for a line, in ms, of an answer of about `num_lines`."""
    registry = CollectorRegistry()
    labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
    gauge = Gauge("vllm:lora_requests_info", "Running stats on lora requests.", labels, registry=registry)
    for waiting, running in combinations(num_lines):
        gauge.labels(NUM_RUNNING, waiting, running).set_to_current_time()
    num_sent = generate_latest(registry).count(b"\n")
    return least_ns(lambda: gzip.compress(generate_latest(registry)), repeats) / num_sent / 1e6


def task(cfg: DictConfig) -> None:
    """Measure and write the result."""
    out, cost_ms = Path(cfg.out), measure(cfg.num_lines, cfg.repeats)
    conditions = {"num_lines": cfg.num_lines, "prometheus_client": version("prometheus_client")}
    result = write_cost(out, "ms_per_line", cost_ms, **conditions)
    print(f"{1e3 * result['ms_per_line']:.0f} us for a line, Python {result['python']}: {out}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_scrape", "calibrate.bsc.scrape")


if __name__ == "__main__":
    main()
