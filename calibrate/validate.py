"""Hold the simulator against replays on the real engine: `python -m calibrate.validate`, no GPU needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from calibrate.bridge.settings import VLLMS_SWAPS, swaps_mode
from calibrate.dataset import read_meta, read_table
from calibrate.host_terms import Scale, from_itself, from_others, from_reference
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically
from sim.simulation import simulate

QUANTITIES = (
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "adapter_loads",
    "adapter_activations",
    "request_goodput",
)
KEPT_UP = 0.2
"""In half a minute, what is in flight at the end is a tenth of the requests."""
AGAIN = "-again"
PLAIN = "vllm"
SECTIONS = ("admission", "eviction", "host_eviction", "prefetch")
META_KEYS = ("play.workload.duration_s", "play.seed", "settings.max_lora_rank", "model")
REQUEST_COLUMNS = ("arrival_s", "first_token_s", "finish_s", "num_generated_tokens")


def measured(folder: Path, slo: dict[str, float]) -> dict[str, float]:
    """Return the metrics of a replay, defined as in `sim.metrics`; `slo` as in `sim.config.SloConfig`, with
    `ttft_ms` and `tpot_ms`.
    """
    meta = read_meta(folder / "meta.json", META_KEYS)
    rows = read_table(folder / "requests.parquet", REQUEST_COLUMNS)
    swaps = read_table(folder / "swaps.parquet", ("phase", "kind", "duration_s"))
    done = rows[rows.finish_s.notna()]
    if done.empty:
        raise UserError(f"{folder}: no request of the replay has finished; replay a longer workload")
    ttft_ms = 1e3 * (done.first_token_s - done.arrival_s)
    following = done.num_generated_tokens - 1
    tpot_ms = (1e3 * (done.finish_s - done.first_token_s) / following).where(following > 0)
    is_good = (ttft_ms <= slo["ttft_ms"]) & ~(tpot_ms > slo["tpot_ms"])
    duration_s = meta["play"]["workload"]["duration_s"]
    kinds = swaps[swaps.phase == "replay"].kind.replace("prefetch", "load").value_counts()
    return {
        "output_throughput": rows.num_generated_tokens.sum() / duration_s,
        "median_ttft_ms": float(np.percentile(ttft_ms, 50)),
        "p99_ttft_ms": float(np.percentile(ttft_ms, 99)),
        "median_tpot_ms": float(tpot_ms.median()),
        "adapter_loads": int(kinds.get("load", 0)),
        "adapter_activations": int(kinds.get("activate", 0)),
        "request_goodput": is_good.sum() / duration_s,
    }


def simulated(
    meta: dict[str, Any], config: dict[str, Any], profile: dict[str, Any], scale: Scale
) -> dict[str, float]:
    """Return the metrics of the same workload, policies, engine settings and seed in the simulator, on such a
    host; `meta` is a replay's.
    """
    engine = {**config["engine"], **engine_settings(meta)}
    settings = {
        "engine": engine,
        "model": meta["model"],
        "workload": meta["play"]["workload"],
        "seed": meta["play"]["seed"],
        "profile": {**profile, "host_scale": scale},
        "loader": loader_of(meta, config),
        "slo": config["slo"],
        **{key: config[key] for key in ("admission", "eviction")},
        **policies(meta["play"].get("policy"), engine),
    }
    summary = simulate(settings).summary
    return {name: np.nan if summary[name] is None else summary[name] for name in QUANTITIES}


def loader_of(meta: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return what the bridge's loader took at a time in this play."""
    jobs = config["loader"]["jobs"]
    return {"jobs": jobs["plays"].get(meta["play"].get("name"), jobs["default"])}


def engine_settings(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the replayed engine's settings; where it was told its KV cache in bytes, in blocks.

    Its graphs are those of its start: a play's own `max_num_seqs` does not change them.
    """
    settings: dict[str, Any] = dict(meta["settings"])
    if (started := meta.get("vllm_config")) is not None:
        settings["cudagraph_capture_sizes"] = started["compilation"]["cudagraph_capture_sizes"]
    if settings.pop("kv_cache_memory_bytes", None) is not None:
        settings["num_gpu_blocks"] = meta["num_gpu_blocks"]
        del settings["gpu_memory_utilization"]
    return settings


def policies(policy: dict[str, Any] | None, engine: dict[str, Any]) -> dict[str, Any]:
    """Return a play's policies as sections of a run; they may refer to the engine's settings."""
    sections = {key: value for key, value in (policy or {}).items() if key in SECTIONS}
    resolved = OmegaConf.create({"engine": engine, "sections": sections})
    found: dict[str, Any] = OmegaConf.to_container(resolved.sections, resolve=True)  # type: ignore[assignment]
    return found


def percent(part: float, whole: float) -> float:
    """Return `part` in percent of `whole`; NaN where there is no whole."""
    return 100 * part / whole if whole else np.nan


def compare(folder: Path, config: dict[str, Any]) -> pd.DataFrame:
    """Return a row per quantity for a replay; a folder of the same name with `-again` is its repetition.

    `simulated` knows the host's speed from the other replays of that engine (`calibrate.host_terms`), or from
    its reference run where there are none; `given_host` from the replay itself.
    """
    meta = read_meta(folder / "meta.json", META_KEYS)
    play, below = meta["play"], is_below_saturation(folder)
    swaps = swaps_mode(play.get("policy"))
    profile = profile_of(swaps, config)
    reference = from_reference(folder, profile)
    others = [other for other in siblings(folder) if other.name != folder.name]
    first = measured(folder, config["slo"])
    scale = from_others(folder, others, profile, reference)
    prediction = simulated(meta, config, profile, scale)
    given_host = simulated(meta, config, profile, from_itself(folder, profile, scale))
    repetition = folder.with_name(folder.name + AGAIN)
    again = measured(repetition, config["slo"]) if repetition.exists() else {}
    rows = []
    for name in QUANTITIES:
        second = again.get(name, np.nan)
        mean = (first[name] + second) / 2 if again else first[name]
        rows.append(
            {
                "workload": folder.name,
                "policy": play.get("policy_name", PLAIN),
                "swaps": swaps,
                "torch_threads": play.get("torch_threads"),
                "max_loras": meta["settings"]["max_loras"],
                "mode": play["workload"]["mode"],
                "below_saturation": below,
                "quantity": name,
                "measured": first[name],
                "measured_again": second,
                "simulated": prediction[name],
                "error_pct": percent(prediction[name] - mean, mean),
                "hardware_spread_pct": percent(abs(first[name] - second), mean),
                "simulated_given_host": given_host[name],
                "error_given_host_pct": percent(given_host[name] - first[name], first[name]),
            }
        )
    return pd.DataFrame(rows)


def is_below_saturation(folder: Path) -> bool:
    """Whether requests came by the clock, and the engine kept up: few were unfinished at the end."""
    if read_meta(folder / "meta.json", META_KEYS)["play"]["workload"]["mode"] == "closed":
        return False
    unfinished = read_table(folder / "requests.parquet", REQUEST_COLUMNS).finish_s.isna()
    return bool(unfinished.mean() <= KEPT_UP)


def profile_of(swaps: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the profile of a way in which adapters come in."""
    profile: dict[str, Any] = config["profile" if swaps == VLLMS_SWAPS else swaps]
    return profile


def siblings(folder: Path) -> list[Path]:
    """Return the replays of the same engine, between its start and its end, in which adapters came in the
    same way, this one included.
    """
    host = _host_of(folder)
    if host[0] is None:
        return [folder]
    found = (file.parent for file in sorted(folder.parent.glob("*/meta.json")))
    return [other for other in found if _host_of(other) == host]


def _host_of(folder: Path) -> tuple[str | None, str | None, int | None, str]:
    """Return which engine played, when it was started (another day is another host), with how many threads,
    and its swaps.
    """
    meta = read_meta(folder / "meta.json", META_KEYS)
    play = meta["play"]
    threads = play.get("torch_threads")
    return meta.get("engine"), meta.get("engine_started"), threads, swaps_mode(play.get("policy"))


def is_row(folder: Path) -> bool:
    """Whether a replay is a row of its own: no repetition, and none of those that compare outputs."""
    play = read_meta(folder / "meta.json", META_KEYS)["play"]
    return not folder.name.endswith(AGAIN) and not play.get("outputs")


def task(cfg: DictConfig) -> None:
    """Compare every replay and write one table."""
    config = plain_values(cfg)
    root = Path(config["replays"])
    folders = [
        folder for folder in sorted(file.parent for file in root.glob("*/meta.json")) if is_row(folder)
    ]
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
