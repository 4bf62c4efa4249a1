"""``lorasim``, also ``python -m sim``: one simulation, or a sweep of them."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sim.cli import hydra_entry
from sim.errors import DoesNotFit, UserError
from sim.sweep import cell

SHOWN_METRICS = (
    *("completed", "request_throughput", "output_throughput", "median_ttft_ms", "p99_ttft_ms"),
    *("median_tpot_ms", "p99_tpot_ms", "adapter_loads", "adapter_activations", "num_preemptions"),
)


def main() -> None:
    """Run ``lorasim`` with the arguments in ``sys.argv``."""
    hydra_entry(simulate_job, "config")


def simulate_job(config: DictConfig) -> None:
    """Simulate ``config`` and write its results to Hydra's output folder of the job.

    In a sweep a UserError becomes a result with status ``oom`` or ``error``; in a single run it is raised.
    """
    # Here and not above, so that --help, a typo and shell completion are answered at once.
    from sim import results, simulation  # noqa: PLC0415

    hydra_config = HydraConfig.get()
    out_dir = Path(hydra_config.runtime.output_dir)
    values = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    try:
        result = simulation.run(values, out_dir)
    except UserError as error:
        if not sweeping:
            raise
        status = "oom" if isinstance(error, DoesNotFit) else "error"
        results.write_failed(out_dir, values, status, str(error))
    else:
        if not sweeping:
            _show(result.summary, out_dir)
    finally:
        # Hydra made the folder; one without results is not left behind.
        with suppress(OSError):
            out_dir.rmdir()


def _show(summary: Mapping[str, Any], out_dir: Path) -> None:
    for warning in summary["profile"]["outside_range"]:
        print(f"lorasim: warning: {warning}", file=sys.stderr)
    width = max(len(name) for name in SHOWN_METRICS)
    for name in SHOWN_METRICS:
        print(f"{name:{width}}  {cell(summary[name]):>12}")
    shares = ", ".join(f"{share:.0%} {name}" for name, share in summary["time_share"].items())
    print(f"{'time_share':{width}}  {shares}")
    print(f"\n{summary['vllm_serve_command']}\n\n{out_dir}")


if __name__ == "__main__":
    main()
