"""``lorasim``, also ``python -m sim``: one simulation, or a sweep of them."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sim.caveats import caveats_of
from sim.cli import hydra_entry
from sim.config import run_values
from sim.fields import as_mapping, build, plain_values
from sim.job import import_from_config_dirs, run_job
from sim.sweep.objective import Objective
from sim.sweep.options import SweepConfig
from sim.tables import cell

SHOWN_METRICS = (
    *("completed", "request_throughput", "request_goodput", "output_throughput"),
    *("median_ttft_ms", "p99_ttft_ms"),
    *("median_tpot_ms", "p99_tpot_ms", "adapter_loads", "adapter_activations", "num_preemptions"),
)


def main() -> None:
    """Run ``lorasim`` with the arguments in ``sys.argv``."""
    hydra_entry(simulate_job, "config")


def simulate_job(config: DictConfig) -> float | None:
    """Simulate ``config``, write its results to Hydra's output folder of the job, return its objective.

    In a sweep whatever goes wrong becomes a result with status ``oom`` or ``error``; in a single run it is
    raised.
    """
    # Here and not above, so that --help, a typo and shell completion are answered at once.
    from sim import simulation  # noqa: PLC0415

    hydra = cast("DictConfig", HydraConfig.get())
    import_from_config_dirs(hydra)
    values = run_values(config)
    objective = Objective.from_mapping(plain_values(config.objective))
    sweep = build(SweepConfig, as_mapping(plain_values(config.sweep), "sweep"), "sweep")
    if hydra.mode == RunMode.MULTIRUN:
        return objective.value(run_job(values, hydra, sweep.resume))
    objective.check_metric()
    out_dir = Path(hydra.runtime.output_dir)
    try:
        summary = simulation.run(values, out_dir).summary
    finally:
        # Hydra made the folder; one without results is not left behind.
        with suppress(OSError):
            out_dir.rmdir()
    _show(summary, out_dir)
    return objective.value(summary)


def _show(summary: Mapping[str, Any], out_dir: Path) -> None:
    for warning in caveats_of(summary):
        print(f"lorasim: warning: {warning}", file=sys.stderr)
    width = max(len(name) for name in SHOWN_METRICS)
    for name in SHOWN_METRICS:
        if name in summary:
            print(f"{name:{width}}  {cell(summary[name]):>12}")
    shares = ", ".join(f"{share:.0%} {name}" for name, share in summary["time_share"].items())
    print(f"{'time_share':{width}}  {shares}")
    print(f"\n{summary['vllm_serve_command']}\n\n{out_dir}")


if __name__ == "__main__":
    main()
