"""``python -m reports.fidelity``: how near simulations come to the real engine, and policies inside it."""

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from reports.fidelity.errors import replays_section, scatter_plot, targets_section
from reports.fidelity.outputs import outputs_section
from reports.fidelity.policies import policies_section, winner_section
from reports.fidelity.served import served_section
from reports.fidelity.swaps import host_section, swaps_section
from reports.fidelity.threads import pairs, threads_plot, threads_section
from reports.svg import picture
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically

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
    if found := pairs(rows, folders):
        write_atomically(out / "loads-by-threads.svg", picture(threads_plot(found)))
    write_atomically(out / "replays.csv", rows.to_csv(index=False).encode())
    parts = [
        [HEAD],
        targets_section(rows),
        winner_section(rows, config["plain"], config["winners"], config["traffic"]),
        policies_section(rows),
        served_section(config["served"]["results"], config["served"]["weak_adapters"]),
        swaps_section(config["swaps"]),
        threads_section(Path(config["threads"]), found),
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


if __name__ == "__main__":
    main()
