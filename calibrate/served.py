"""Hold the simulator against `vllm bench serve`: `python -m calibrate.served`, no GPU needed."""

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from calibrate.bridge.settings import swaps_mode
from calibrate.dataset import read_json, read_meta
from calibrate.host_terms import from_others, from_reference
from calibrate.validate import META_KEYS, percent, profile_of, siblings, simulated
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically

QUANTITIES = ("output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")
"""Their names in `vllm bench serve`'s results, and in ours."""


def compare(name: str, run: dict[str, Any], config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per quantity for one result file of `vllm bench serve`. Raises UserError."""
    file = Path(config["results"]) / run["file"]
    result = read_json(file)
    missing = [key for key in (*QUANTITIES, "num_prompts", "max_concurrency") if key not in result]
    if missing:
        raise UserError(f"{file}: no {missing[0]} in it; expected a file of vllm bench serve --save-result")
    policy = run["policy"] or {}
    profile = profile_of(swaps_mode(policy), config)
    host = Path(run["host"])  # A replay of the same hour tells the host's speed.
    scale = from_others(host, siblings(host), profile, from_reference(host, profile))
    served = {key: result[key] for key in ("num_prompts", "max_concurrency")}
    found = simulated(meta_of(served, policy, host, config), config, profile, scale)
    return [
        {
            "policy": name,
            "quantity": quantity,
            "measured": result[quantity],
            "simulated": found[quantity],
            "error_pct": percent(found[quantity] - result[quantity], result[quantity]),
        }
        for quantity in QUANTITIES
    ]


def meta_of(
    served: dict[str, int], policy: dict[str, Any], host: Path, config: dict[str, Any]
) -> dict[str, Any]:
    """Return a run of the client as a replay's `meta.json` would tell of it."""
    ends = {"num_requests": served["num_prompts"], "concurrency": served["max_concurrency"]}
    workload = {**config["workload"], "mode": "closed", "request_rate": None, "duration_s": None, **ends}
    return {
        "settings": config["settings"],
        "model": read_meta(host / "meta.json", META_KEYS)["model"],
        "play": {"workload": workload, "seed": config["seed"], "policy": policy},
    }


def task(cfg: DictConfig) -> None:
    """Compare every result file and write one table."""
    config = plain_values(cfg)
    rows = [row for name, run in config["runs"].items() for row in compare(name, run, config)]
    table = pd.DataFrame(rows).round(2)
    write_atomically(Path(config["out"]), table.to_csv(index=False).encode())
    print(table.to_string(index=False))
    print(f"written to {config['out']}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "served", "calibrate.served")


if __name__ == "__main__":
    main()
