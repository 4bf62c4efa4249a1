"""From timed sleeps to the cost of a switch by vLLM's sleep mode: `python -m calibrate.fit_sleep_mode`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from calibrate.dataset import read_meta, read_table
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically

META_KEYS = ("gpu", "model.name", "versions.vllm")
TEXT = """\
# @package _global_
# Made by python -m calibrate.fit_sleep_mode from {folder}; do not edit.
# One adapter at a time has a process that is awake: drain, sleep (level 1, weights in host memory), wake.
# Medians of {count} sleeps after the first, which took {first_s} s: it pins the host's memory for weights.
defaults:
  - override /admission: time_slice
  - _self_

engine:
  max_loras: 1
  max_cpu_loras: 1
swap:
  mechanism: sleep_mode
  stop_s: {stop_s}
  start_s: {start_s}
  source: "measured: {model} on an {gpu}, vLLM {vllm}"
"""


def text_of(folder: Path) -> str:
    """Return `conf/swap`'s file for the sleeps in `folder` (`calibrate.sleep_mode`). Raises UserError."""
    meta = read_meta(folder / "meta.json", META_KEYS)
    sleeps = read_table(folder / "sleeps.parquet", ("repeat", "sleep_s", "wake_s"))
    later = sleeps[sleeps.repeat > 0]
    if later.empty:
        raise UserError(
            f"{folder}: {len(sleeps)} sleep in it; expected two or more, as the first pins memory"
        )
    return TEXT.format(
        folder=folder.as_posix(),
        count=len(later),
        first_s=_seconds(sleeps.sleep_s.iloc[0]),
        stop_s=_seconds(later.sleep_s.median()),
        start_s=_seconds(later.wake_s.median()),
        model=meta["model"]["name"],
        gpu=meta["gpu"],
        vllm=meta["versions"]["vllm"],
    )


def _seconds(value_s: float) -> str:
    return f"{value_s:.3g}"


def task(cfg: DictConfig) -> None:
    """Write a file for each model."""
    config: dict[str, Any] = plain_values(cfg)
    texts = {Path(out): text_of(Path(folder)) for out, folder in config["sleeps"].items()}
    for out, text in texts.items():
        write_atomically(out, text.encode())
        print(f"written to {out}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "fit_sleep_mode", "calibrate.fit_sleep_mode")


if __name__ == "__main__":
    main()
