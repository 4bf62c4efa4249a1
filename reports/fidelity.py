"""``python -m reports.fidelity``: how near simulations come to the real engine, and policies inside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from omegaconf import DictConfig
from scipy.stats import kendalltau

from reports import svg
from reports.experiments.document import markdown_table
from reports.numbers import number
from reports.svg import MARKERS, SERIES, Plot, draw_grid, picture
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically

QUANTITIES = {
    "output_throughput": ("output throughput, tokens/s", 3.0),
    "median_tpot_ms": ("TPOT p50, ms", 3.0),
    "median_ttft_ms": ("TTFT p50, ms", 10.0),
    "p99_ttft_ms": ("TTFT p99, ms", 10.0),
    "adapter_loads": ("loads", 5.0),
    "adapter_activations": ("activations", 5.0),
}
"""Title, and the target for the median absolute error in percent."""
WORST_THROUGHPUT_PCT = 10.0
PLAIN = "vllm"
HEAD = """# Simulated and measured on an H100

Made by `python -m reports.fidelity` from `check.csv` of each model (`python -m calibrate.validate`), the
tables of the fits, and what the replays kept of swaps and outputs. The replays are the plan in
`conf/replay.yaml`, each of them a row here, whatever came out.
"""


def main() -> None:
    """Run ``python -m reports.fidelity`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "fidelity", "reports.fidelity")


def task(cfg: DictConfig) -> None:
    """Write the page and its pictures. Raises UserError and OSError."""
    config = plain_values(cfg)
    folders = {model: Path(folder) for model, folder in config["replays"].items()}
    rows = pd.concat([_read(folder, model) for model, folder in folders.items()], ignore_index=True)
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "predicted-against-measured.svg", picture(scatter_plot(rows)))
    write_atomically(out / "replays.csv", rows.to_csv(index=False).encode())
    parts = [
        [HEAD],
        targets_section(rows),
        policies_section(rows),
        swaps_section(config["swaps"]),
        host_section(rows, folders),
        outputs_section(list(folders.values()), config["outputs"]),
        replays_section(rows),
    ]
    write_atomically(out / "README.md", "\n".join(line for part in parts for line in part).encode())
    print(f"Report: {out / 'README.md'}")


def _read(folder: Path, model: str) -> pd.DataFrame:
    path = folder / "check.csv"
    try:
        return pd.read_csv(path).assign(model=model)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no comparison there ({error}); make it with calibrate.validate") from error


def targets_section(rows: pd.DataFrame) -> list[str]:
    """Return the errors over all replays against their targets."""
    lines = []
    for name, (title, target) in QUANTITIES.items():
        part = rows[rows.quantity == name]
        error, own = part.error_pct.abs(), part.error_given_swaps_pct.abs()
        spread = part.hardware_spread_pct.dropna()
        met = "met" if error.median() <= target else "missed"
        medians = [f"{error.median():.1f} %", f"{target:.0f} %", met, f"{error.max():.1f} %"]
        lines.append([title, *medians, f"{own.median():.1f} %", f"{spread.median():.1f} % ({len(spread)})"])
    throughput = dict(rows[rows.quantity == "output_throughput"].set_index("workload").error_pct)
    worst = max(throughput, key=lambda workload: abs(throughput[workload]))
    is_met = "met" if abs(throughput[worst]) <= WORST_THROUGHPUT_PCT else "missed"
    head = ["", "median error", "target", "", "worst", "given the replay's own swaps", "hardware's spread"]
    return [
        "## Errors",
        "",
        f"{len(throughput)} replays of 30 s or more. Predictions know the host's speed from the other "
        "replays of the same engine. The column before the last one knows the replay's own mean load and "
        "activation, which tells an error of the simulated mechanism from one of the host's speed; the last"
        " one is by how much two runs of the same work on the same engine differ (median, and how many).",
        "",
        *markdown_table(head, lines),
        "",
        f"Worst throughput: {worst}, {throughput[worst]:+.1f} % "
        f"(target {WORST_THROUGHPUT_PCT:.0f} %, {is_met}).",
        "",
        "![Predicted against measured](predicted-against-measured.svg)",
        "",
    ]


def host_section(rows: pd.DataFrame, folders: dict[str, Path]) -> list[str]:
    """Return how long loads and activations took in each replay."""
    lines = []
    for (model, workload), _ in rows.groupby(["model", "workload"]):
        swaps = pd.read_parquet(folders[str(model)] / str(workload) / "swaps.parquet")
        swaps = swaps[swaps.phase == "replay"]
        cells = [f"{model}, {workload}"]
        for kind in ("load", "activate"):
            taken_ms = 1e3 * swaps.duration_s[swaps.kind == kind]
            points = taken_ms.quantile([0.1, 0.5, 0.9, 1.0]) if len(taken_ms) else [np.nan] * 4
            cells += [number(value) for value in points]
        lines.append(cells)
    head = [
        "",
        "load, ms: 10 %",
        "median",
        "90 %",
        "longest",
        "activation: 10 %",
        "median",
        "90 %",
        "longest",
    ]
    return [
        "## The host's speed",
        "",
        "What loads and activations took in each replay. An activation has two speeds, which follow one "
        "another within seconds, and a load now and then stalls: the errors above are mostly the host's.",
        "",
        *markdown_table(head, lines),
        "",
    ]


def policies_section(rows: pd.DataFrame) -> list[str]:
    """Return, for each workload that several policies served, their throughput and its order."""
    base = [
        workload.removesuffix(f"-{policy}")
        for workload, policy in zip(rows.workload, rows.policy, strict=True)
    ]
    found = rows.assign(base=base)
    lines = ["## Policies inside vLLM", ""]
    for (model, name), group in found.groupby(["model", "base"]):
        throughput = group[group.quantity == "output_throughput"].set_index("policy")
        if len(throughput) < 3 or PLAIN not in throughput.index:
            continue
        measured = _mean_of_both(throughput)
        lines += [f"### {model}, {name}", ""]
        gains = [measured / measured[PLAIN], throughput.simulated / throughput.simulated[PLAIN]]
        head = ["policy", "tokens/s", "simulated", "gain", "simulated gain", "p99 TTFT, ms", "simulated"]
        ttft = group[group.quantity == "p99_ttft_ms"].set_index("policy")
        lines += markdown_table(
            head,
            [
                [policy, number(measured[policy]), number(throughput.simulated[policy])]
                + [f"{gain[policy]:.2f}" for gain in gains]
                + [number(_mean_of_both(ttft)[policy]), number(ttft.simulated[policy])]
                for policy in measured.sort_values().index
            ],
        )
        tau = kendalltau(measured, throughput.simulated.reindex(measured.index)).statistic
        lines += ["", f"Order of the policies, simulated against measured: Kendall's tau {tau:.2f}.", ""]
    return lines


def _mean_of_both(rows: pd.DataFrame) -> "pd.Series[float]":
    return rows.measured_again.add(rows.measured).div(2).fillna(rows.measured)


def swaps_section(tables: dict[str, str]) -> list[str]:
    """Return what loads and activations take, tensor by tensor and in one piece."""
    lines = []
    for title, path in tables.items():
        try:
            swaps = pd.read_csv(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; make it with calibrate.fit") from error
        lines += [
            [title, row.kind.replace("_", ", "), str(row["rank"])]
            + [number(row[name]) for name in ("p10_ms", "median_ms", "p90_ms", "max_ms")]
            for _, row in swaps.iterrows()
        ]
    head = ["", "", "rank", "10 %, ms", "median", "90 %", "longest"]
    return [
        "## What bringing an adapter in takes of the engine's thread",
        "",
        "vLLM parses, converts and pins an adapter's tensors one by one, then fills a slot with as many "
        "copies and fills. In one piece (`swaps: one_piece`) the file is read into page-locked memory, and "
        "a slot is filled by one copy and one call (`calibrate/bridge/slot_copies.py`); vLLM's own code is "
        "as it was.",
        "",
        *markdown_table(head, lines),
        "",
    ]


def outputs_section(folders: Sequence[Path], pairs: Sequence[Sequence[str]]) -> list[str]:
    """Return the share of requests whose greedy outputs are equal, token for token."""
    lines = []
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"outputs: {list(pair)}: expected two names of replays")
        first, second = pair
        for folder in folders:
            files = [folder / name / "outputs.parquet" for name in (first, second)]
            if all(file.exists() for file in files):
                ours, theirs = (pd.read_parquet(file).set_index("request_id").token_ids for file in files)
                both = [name for name in ours.index if name in theirs.index]
                equal = sum(bool(np.array_equal(ours[name], theirs[name])) for name in both)
                lines.append([f"{first}, {second}", str(len(both)), f"{100 * equal / len(both):.1f} %"])
    if not lines:
        return []
    return [
        "## Outputs, token for token",
        "",
        "Greedy outputs of 128 tokens, same prompts and adapters:",
        "",
        *markdown_table(["replays", "requests", "equal"], lines),
        "",
    ]


def replays_section(rows: pd.DataFrame) -> list[str]:
    """Return a row for each replay."""
    head = ["model, replay"]
    for name in ("output_throughput", "median_tpot_ms", "median_ttft_ms", "p99_ttft_ms"):
        head += [QUANTITIES[name][0], "error"]
    head += ["loads", "error", "activations", "error"]
    lines = []
    for (model, workload), part in rows.groupby(["model", "workload"]):
        group = part.set_index("quantity")
        line = [f"{model}, {workload}"]
        for name in QUANTITIES:
            line += [number(group.measured[name]), f"{group.error_pct[name]:+.1f} %"]
        lines.append(line)
    return ["## Every replay", "", *markdown_table(head, lines), ""]


def scatter_plot(rows: pd.DataFrame) -> Plot:
    """Return predicted against measured for each quantity, a point a replay."""
    paints = [_scatter(rows[rows.quantity == name], title) for name, (title, _) in QUANTITIES.items()]
    caption = "A point for each replay; colours and shapes: the policy."
    return draw_grid("Predicted against measured", caption, paints, 3, (3.2, 3.2))


def _scatter(rows: pd.DataFrame, title: str) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        shown = rows[(rows.measured > 0) & (rows.simulated > 0)]
        for index, (policy, part) in enumerate(shown.groupby("policy")):
            axes.plot(
                part.measured,
                part.simulated,
                MARKERS[index % len(MARKERS)],
                color=SERIES[index % len(SERIES)],
                markersize=4,
                markeredgewidth=0,
                label=str(policy),
            )
        axes.set(xscale="log", yscale="log", xlabel="measured", ylabel="simulated", title=title)
        svg.draw_diagonal(axes)
        axes.legend(fontsize=6, loc="upper left", handletextpad=0.1)

    return paint


if __name__ == "__main__":
    main()
