"""``python -m reports.bsc``: the study's runs, measured and predicted, as tables and plots."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from omegaconf import DictConfig

from reports import svg
from reports.bsc_misses import BIAS_TARGET_PCT, REGRET_TARGET_PCT, TARGETS_PCT, misses
from reports.numbers import NONE, number
from reports.svg import SERIES, Plot, draw_grid, draw_scatter, picture
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically

SCATTERS = (
    ("output throughput, tokens/s", "out_tok_s", "sim_out_tok_s", "twin_output_throughput"),
    ("ITL, ms", "mean_itl_ms", "sim_mean_itl_ms", "twin_itl"),
    ("TTFT of completed requests, ms", "mean_ttft_ms", "sim_mean_ttft_ms", None),
    ("TTFT of all requests, ms", "ttft_all_ms", "sim_ttft_all_ms", "twin_ttft"),
    ("preemptions", "num_preempted_last", "sim_num_preempted", None),
)
"""Title, measured, ours, the twin's."""
MEASURED = ("offered_req_s", "completed", "duration_s", "out_tok_s", "mean_ttft_ms", "mean_itl_ms")
"""What a row must have to be compared."""
GROUP = ("model", "ranks", "rate_values", "rate_counts", "max_cpu_loras")
NOT_MODELLED = (
    "## What is not modelled",
    "",
    "* Of the HTTP front end, the tokenizer, the way to the engine's process and back, and its limits where",
    "  thousands of tokens a second are sent. It is there as one that stands still while it writes its",
    "  metrics, and that sends the first token of a request after the tokens of the rest of its batch.",
    "* Why the outputs of LoRA kernels cost as much beyond the GPU's cache as they are fitted to: more than",
    "  to write them to memory and read them once does. The microbenchmarks have steps of up to 256 and of",
    "  about 2,000 tokens with adapters; the size of the cache says where between the cost begins.",
    "* ShareGPT's own lengths: ours are lognormal with the row's means, and each row's are its own.",
    "* The study's host. What a waiting request, a slot, a line of the metrics and a token that is sent cost",
    "  it was measured on another.",
)


def main() -> None:
    """Run ``python -m reports.bsc`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "bsc_report", "reports.bsc")


def task(config: DictConfig) -> None:
    """Read what ``python -m calibrate.bsc`` wrote and write the page. Raises UserError and OSError."""
    folder, out = Path(str(config.dir)), Path(str(config.out))
    try:
        rows = pd.read_csv(folder / "runs.csv")
        scores = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"dir={folder}: no results there ({error}); make them with python -m calibrate.bsc"
        ) from error
    rows = compared(rows)
    if rows.empty:
        raise UserError(f"dir={folder}: no row has both a result and a prediction")
    out.mkdir(parents=True, exist_ok=True)
    for plot in (scatter_plot(rows), *([curves_plot(rows)] if curves(rows) else [])):
        write_atomically(out / f"{plot.name}.svg", picture(plot))
    for name in ("runs.csv", "summary.json"):
        if folder.resolve() != out.resolve():
            write_atomically(out / name, (folder / name).read_bytes())
    write_atomically(out / "README.md", page(rows, scores).encode())
    print(f"Report: {out / 'README.md'}")


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a result and a prediction, with their regime and the TTFT of all requests."""
    lacking = [name for name in MEASURED if name not in rows]
    if lacking:
        return rows.iloc[:0]
    rows = rows[rows[list(MEASURED)].notna().all(axis=1) & (rows.sim_status == "ok")]
    if "num_preempted_last" not in rows:
        rows = rows.assign(num_preempted_last=0.0)
    sent = rows.offered_req_s * rows.total_time
    measured = rows.mean_ttft_ms * rows.completed + (sent - rows.completed) * rows.duration_s * 1e3
    ours = rows.sim_mean_ttft_ms * rows.sim_completed + (sent - rows.sim_completed) * rows.total_time * 1e3
    keeps_up = rows.completed >= 0.97 * sent
    regime = np.where(rows.num_preempted_last > 0, "preempting", np.where(keeps_up, "stable", "saturated"))
    return rows.assign(ttft_all_ms=measured / sent, sim_ttft_all_ms=ours / sent, regime=regime)


def scatter_plot(rows: pd.DataFrame) -> Plot:
    """Return predicted against measured for each metric."""
    paints = [_scatter(rows, *columns) for columns in SCATTERS]
    caption = "Colours and shapes: the regime of the measured run. Small grey points: the Digital Twin."
    return draw_grid("Predicted against measured", caption, paints, 3, (3.2, 3.2))


def _scatter(
    rows: pd.DataFrame, title: str, measured: str, ours: str, twin: str | None
) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        positive = rows[(rows[measured] > 0) & (rows[ours] > 0)]
        if twin is not None and twin in rows:
            axes.plot(rows[measured], rows[twin], ".", color=svg.FAINT, markersize=2.5, alpha=0.6)
        regimes = positive.groupby("regime")
        groups = ((str(regime), part[measured], part[ours]) for regime, part in regimes)
        axes.set(ylabel="predicted", title=title)
        if len(positive):
            draw_scatter(axes, groups, markersize=3.5, alpha=0.8)
            axes.legend(fontsize=7, loc="upper left", handletextpad=0.1)

    return paint


def curves(rows: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Return the groups with two rows or more."""
    return [(key, part) for key, part in rows.groupby(list(GROUP), sort=True) if len(part) > 1]


def curves_plot(rows: pd.DataFrame) -> Plot:
    """Return the output throughput over `max_loras` of every group with two rows or more."""
    paints = [_curve(key, part.sort_values(["max_loras", "max_lora_rank"])) for key, part in curves(rows)]
    caption = "Filled: measured. Open: predicted. Crosses: the Digital Twin."
    return draw_grid("Throughput over max_loras", caption, paints, 5, (2.2, 1.9))


def _curve(key: Any, part: pd.DataFrame) -> Callable[[Axes], None]:
    model, ranks, rates, _, num_adapters = key

    def paint(axes: Axes) -> None:
        axes.plot(part.max_loras, part.out_tok_s, "o-", color=SERIES[0], markersize=4)
        axes.plot(
            part.max_loras, part.sim_out_tok_s, "o--", color=SERIES[1], markersize=4, markerfacecolor="none"
        )
        if "twin_output_throughput" in part:
            axes.plot(part.max_loras, part.twin_output_throughput, "x", color=svg.FAINT, markersize=3)
        axes.set_xscale("log", base=2)
        slots = sorted(part.max_loras.unique())
        axes.set_xticks(slots, [f"{value:.0f}" for value in slots])
        axes.set_ylim(0, 1.15 * max(part.out_tok_s.max(), part.sim_out_tok_s.max()))
        name, rate = str(model).split("-", maxsplit=1)[0], str(rates).split()[-1]
        title = f"{name}, {num_adapters:.0f} adapters\nranks {ranks}, up to {rate}/s"
        axes.set_title(title, fontsize=7)

    return paint


def page(rows: pd.DataFrame, scores: Mapping[str, Any]) -> str:
    """Return the page about the compared rows."""
    parts = scores["errors"]
    lines = [
        "# Real hours of vLLM 0.8.5 that others measured, predicted",
        "",
        "Made by `python -m calibrate.bsc` and `python -m reports.bsc` from runs of the LoRA Digital Twin",
        "study (arXiv 2508.08343; one hour each on an H100, up to 384 adapters); its simulator is the twin.",
        "The profiles are fitted to the study's microbenchmarks; what those do not show of the host is",
        "measured apart (`calibrate.bsc.scan`, `search`, `scrape` and `stream`). A run is predicted from its",
        "settings and mean lengths, which over completed requests are censored in overload.",
        "SMAPE is 2 |a - b| / (|a| + |b|).",
        "",
        f"{scores['compared']} of {scores['rows']} rows are compared. Predicted to run out of memory:",
        f"{scores['predicted_oom']}, of which {scores['measured_but_predicted_oom']} ran.",
        "",
        *_table(parts["all"], targets=True),
        "",
        f"Regret of the best predicted `max_loras` (wanted: under {REGRET_TARGET_PCT} %):",
        "",
        *_regret(scores["regret"]),
        "",
        "![Predicted against measured](predicted-against-measured.svg)",
        "",
        "Colours and shapes: the regime of the measured run. Small grey points: the twin.",
    ]
    if curves(rows):
        lines += [
            "",
            "![Throughput over max_loras](throughput-over-max_loras.svg)",
            "",
            "Filled: measured. Open: predicted. Crosses: the twin. Every group with two rows or more.",
        ]
    lines += ["", "## What misses", "", *misses(rows, scores), "", *NOT_MODELLED]
    for name, records in parts.items():
        if name != "all":
            lines += [
                "",
                f"## {name.capitalize()}: {records[0]['runs']} runs",
                "",
                *_table(records, targets=False),
            ]
    return "\n".join([*lines, ""])


def _table(records: Sequence[Mapping[str, Any]], targets: bool) -> list[str]:
    head = "| metric | SMAPE, % | bias, % | twin's SMAPE, % | twin's bias, % |" + (
        " target | |" if targets else ""
    )
    rule = "| --- | ---: | ---: | ---: | ---: |" + (" ---: | --- |" if targets else "")
    lines = [head, rule]
    for record in records:
        cells = [record[key] for key in ("smape_pct", "bias_pct", "twin_smape_pct", "twin_bias_pct")]
        line = (
            f"| {record['metric']} | "
            + " | ".join(NONE if cell is None else number(cell) for cell in cells)
            + " |"
        )
        if targets:
            target = TARGETS_PCT.get(record["metric"])
            met = None not in (target, record["smape_pct"]) and record["smape_pct"] <= target
            bias_met = record["bias_pct"] is not None and abs(record["bias_pct"]) < BIAS_TARGET_PCT
            verdict = (
                "" if target is None else ("met" if met else "missed") + ("" if bias_met else ", bias missed")
            )
            line += f" {NONE if target is None else f'{target:g}'} | {verdict} |"
        lines.append(line)
    return lines


def _regret(regret: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| who | groups | best chosen | mean, % | worst, % |", "| --- | ---: | ---: | ---: | ---: |"]
    for who, found in regret.items():
        cells = [found.get(key) for key in ("groups", "best_chosen", "mean_pct", "worst_pct")]
        lines.append(
            f"| {who} | " + " | ".join(NONE if cell is None else f"{cell:g}" for cell in cells) + " |"
        )
    return lines


if __name__ == "__main__":
    main()
