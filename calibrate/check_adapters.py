"""Checks a folder of PEFT adapters, without a GPU and without torch: `python -m calibrate.check_adapters`."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from calibrate.adapter_problems import Report, check
from calibrate.peft_adapter import CONFIG_FILE, OTHER_WEIGHTS, WEIGHTS_FILE
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically
from sim.results import to_json

FILES = (CONFIG_FILE, WEIGHTS_FILE, *OTHER_WEIGHTS)


def adapter_folders(root: Path) -> list[Path]:
    """Return `root` itself if it is an adapter, else all folders in it but hidden ones. Raises UserError."""
    if not root.is_dir():
        raise UserError(f"dir={root}: no such folder")
    if any((root / name).is_file() for name in FILES):
        return [root]
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"dir={root}: no adapters in it; expected folders with {CONFIG_FILE}")
    return folders


def table(reports: Sequence[Report]) -> str:
    """Return a row an adapter, and below it what is wrong, a line each."""
    width = max(len("Adapter"), *(len(report.name) for report in reports))
    head = f"{'Adapter':{width}}  {'r':>4}  {'Tensor ranks':>12}  Modules  {'Size':>10}  Status"
    lines = [head, "-" * len(head)]
    for report in reports:
        ranks = ", ".join(map(str, report.tensor_ranks)) or "-"
        rank = "-" if report.rank is None else report.rank
        status = "BAD" if report.problems else "ok"
        size = f"{report.size_bytes / 1e6:,.1f} MB"
        lines.append(
            f"{report.name:{width}}  {rank:>4}  {ranks:>12}  {report.modules:>7}  {size:>10}  {status}"
        )
        lines += [f"    {problem}" for problem in report.problems]
    return "\n".join(lines)


def summary(reports: Sequence[Report]) -> list[str]:
    """Return what holds for all adapters together: how many are bad, ranks, base models."""
    bad = sum(bool(report.problems) for report in reports)
    ranks = Counter(report.rank for report in reports if report.rank is not None)
    lines = [f"{len(reports)} adapters, {bad} bad"]
    if len(ranks) > 1:
        counted = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(ranks.items()))
        lines.append(f"mixed ranks: {counted}; vLLM's slots are all as large as max_lora_rank")
    bases = Counter(report.base_model for report in reports if report.base_model is not None)
    if len(bases) > 1:
        counted = ", ".join(f"{count} of {base}" for base, count in bases.most_common())
        lines.append(f"several base models: {counted}; one engine serves one")
    return lines


def main() -> None:
    """Run the command with the arguments in `sys.argv`."""
    hydra_entry(task, "check_adapters", "calibrate.check_adapters")


def task(cfg: DictConfig) -> None:
    """Check every adapter of `dir` and print a table; exit status 1 if any is bad."""
    if cfg.dir is None:
        raise UserError("dir: not given; expected dir=<folder of PEFT adapters>")
    limit = cfg.max_lora_rank
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"max_lora_rank={limit}: expected a rank of 1 or more, or null for no limit")
    folders = adapter_folders(Path(str(cfg.dir)))
    reports = [check(folder, limit) for folder in tqdm(folders, unit="adapter", leave=False)]
    if cfg.out is not None:
        content = {"dir": str(cfg.dir), "max_lora_rank": limit, "adapters": [asdict(r) for r in reports]}
        write_atomically(Path(str(cfg.out)), to_json(content).encode())
    print("\n".join([table(reports), "", *summary(reports)]))
    if any(report.problems for report in reports):
        sys.exit(1)


if __name__ == "__main__":
    main()
