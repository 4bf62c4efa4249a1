"""Hold the simulator against replays on the real engine: `python -m calibrate.validate`, no GPU needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from calibrate.dataset import kinds, read_meta, read_table, reference
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically
from sim.profile import SWAPS
from sim.simulation import simulate

QUANTITIES = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "adapter_loads",
    "adapter_activations",
)
AGAIN = "-again"
META_KEYS = ("play.workload.duration_s", "play.seed", "settings.max_lora_rank", "model")
REQUEST_COLUMNS = ("arrival_s", "first_token_s", "finish_s", "num_generated_tokens")


def measured(folder: Path) -> dict[str, float]:
    """Return the metrics of a replay, defined as in `sim.metrics`."""
    meta = read_meta(folder / "meta.json", META_KEYS)
    rows = read_table(folder / "requests.parquet", REQUEST_COLUMNS)
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "duration_s"))
    done = rows[rows.finish_s.notna()]
    if done.empty:
        raise UserError(f"{folder}: no request of the replay has finished; replay a longer workload")
    ttft_ms = 1e3 * (done.first_token_s - done.arrival_s)
    several = done[done.num_generated_tokens > 1]
    tpot_ms = 1e3 * (several.finish_s - several.first_token_s) / (several.num_generated_tokens - 1)
    kinds = swaps[swaps.phase == "replay"].kind.value_counts()
    return {
        "output_throughput": rows.num_generated_tokens.sum() / meta["play"]["workload"]["duration_s"],
        "median_ttft_ms": float(np.percentile(ttft_ms, 50)),
        "p99_ttft_ms": float(np.percentile(ttft_ms, 99)),
        "median_tpot_ms": float(tpot_ms.median()),
        "adapter_loads": int(kinds.get("load", 0)),
        "adapter_activations": int(kinds.get("activate", 0)),
    }


def simulated(folder: Path, config: dict[str, Any], scale: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the same workload, engine settings and seed in the simulator, on such a host."""
    meta = read_meta(folder / "meta.json", META_KEYS)
    profile = {**config["profile"], "host_scale": scale}
    settings = {
        "engine": {**config["engine"], **meta["settings"]},
        "model": meta["model"],
        "workload": meta["play"]["workload"],
        "seed": meta["play"]["seed"],
        "profile": profile,
        **{key: config[key] for key in ("admission", "eviction")},
    }
    summary = simulate(settings).summary
    return {name: np.nan if summary[name] is None else summary[name] for name in QUANTITIES}


def percent(part: float, whole: float) -> float:
    """Return `part` in percent of `whole`; NaN where there is no whole."""
    return 100 * part / whole if whole else np.nan


def host_scale(folder: Path, profile: dict[str, Any]) -> dict[str, float]:
    """Return the profile's host terms refreshed: this machine's reference run over the calibration's.

    Terms that are bound by the host's CPU differ by 20 to 50 % between machines of one kind.
    """
    rank = read_meta(folder / "meta.json", META_KEYS)["settings"]["max_lora_rank"]
    known = profile.get("reference_ms", {})
    if rank not in known:
        raise UserError(f"profile.reference_ms: no reference run of rank {rank}; it has {list(known)}")
    steps = read_table(folder / "steps.parquet", ("phase", "graph", "launch_start_s", "launch_end_s"))
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "duration_s"))
    here = reference(steps, swaps, str(folder))
    return {name: round(here[name] / known[rank][name], 3) for name in here}


def own_swaps(folder: Path, profile: dict[str, Any]) -> dict[str, float]:
    """Return the host terms with the replay's own mean swap durations.

    They are no prediction: they tell an error of the simulated mechanism from one of the swaps' speed.
    """
    rank = read_meta(folder / "meta.json", META_KEYS)["settings"]["max_lora_rank"]
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "duration_s", "host_cache_entries"))
    found = kinds(swaps[swaps.phase == "replay"]).groupby("kind").duration_ms.agg(["sum", "size"])
    scales = host_scale(folder, profile)
    for factor in ("load", "activate"):
        rows = [name for name in found.index if SWAPS[name] == factor]
        expected = sum(found["size"][name] * mean_swap_ms(profile, name, rank) for name in rows)
        if rows:
            scales[factor] = round(float(sum(found["sum"][name] for name in rows) / expected), 3)
    return scales


def mean_swap_ms(profile: dict[str, Any], kind: str, rank: int) -> float:
    """Return the mean duration of a swap as the simulator draws it, in ms: between quantiles, evenly."""
    swap = profile["swaps"][kind]
    factor = np.mean([np.mean(swap["spread"][:-1]), np.mean(swap["spread"][1:])])
    return float((swap["constant_ms"] + swap["rank_ms"] * rank) * factor)


def compare(folder: Path, config: dict[str, Any]) -> pd.DataFrame:
    """Return a row per quantity for a replay; a folder of the same name with `-again` is its repetition."""
    first = measured(folder)
    prediction = simulated(folder, config, host_scale(folder, config["profile"]))
    given_swaps = simulated(folder, config, own_swaps(folder, config["profile"]))
    repetition = folder.with_name(folder.name + AGAIN)
    again = measured(repetition) if repetition.exists() else {}
    rows = []
    for name in QUANTITIES:
        second = again.get(name, np.nan)
        mean = (first[name] + second) / 2 if again else first[name]
        rows.append(
            {
                "workload": folder.name,
                "quantity": name,
                "measured": first[name],
                "measured_again": second,
                "simulated": prediction[name],
                "error_pct": percent(prediction[name] - mean, mean),
                "hardware_spread_pct": percent(abs(first[name] - second), mean),
                "simulated_given_swaps": given_swaps[name],
                "error_given_swaps_pct": percent(given_swaps[name] - first[name], first[name]),
            }
        )
    return pd.DataFrame(rows)


def task(cfg: DictConfig) -> None:
    """Compare every replay and write one table."""
    config = plain_values(cfg)
    root = Path(config["replays"])
    folders = sorted(file.parent for file in root.glob("*/meta.json") if not file.parent.name.endswith(AGAIN))
    if not folders:
        raise UserError(
            f"replays={root}: no replays (*/meta.json) there; make some with python -m calibrate.replay"
        )
    table = pd.concat([compare(folder, config) for folder in folders], ignore_index=True).round(2)
    write_atomically(Path(config["out"]), table.to_csv(index=False).encode())
    print(table.to_string(index=False))
    print(f"written to {config['out']}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "validate", "calibrate.validate")


if __name__ == "__main__":
    main()
