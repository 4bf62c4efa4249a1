"""``lorasim-plan``, also ``python -m sim.plan``: the cheapest ``vllm serve`` command that meets targets."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from sim.cli import hydra_entry
from sim.fields import as_mapping, build, plain_values
from sim.files import write_atomically
from sim.job import import_from_config_dirs
from sim.plan.answer import answer_of, in_words
from sim.plan.grid import SearchConfig, Setting, settings_of
from sim.plan.planner import Search
from sim.plan.targets import Target
from sim.plan.trials import Trial, trial_row, try_all
from sim.prices import Prices
from sim.results import POLICY_FILE
from sim.sweep.rows import write_csv

PROG = "lorasim-plan"
EXIT_NOT_MET = 1
PLAN_FILE, TRIED_FILE = "plan.json", "plan.csv"


def main() -> None:
    """Run ``lorasim-plan`` with the arguments in ``sys.argv``."""
    hydra_entry(task, "plan", PROG)


def task(config: DictConfig) -> None:
    """Search, print the answer and write it; exits with 1 where nothing meets.

    ``plan.csv`` has what was tried, ``plan.json`` what was chosen, and ``policy.yaml`` the policies of that,
    where they are not vLLM's own.
    """
    hydra = cast("DictConfig", HydraConfig.get())
    try:
        _plan(config, hydra)
    finally:
        # Hydra made the folder; one without results is not left behind.
        with suppress(OSError):
            Path(hydra.runtime.output_dir).rmdir()


def _plan(config: DictConfig, hydra: DictConfig) -> None:
    import_from_config_dirs(hydra)
    sections = plain_values(config)
    targets = Target.all_from_mapping(as_mapping(sections["slo"], "slo"))
    search = build(SearchConfig, as_mapping(sections["search"], "search"), "search")
    prices = Prices.from_mapping(sections["prices"])
    out_dir = Path(hydra.runtime.output_dir)
    settings = settings_of(search, list(hydra.overrides.task))
    with tqdm(desc="planning", unit="run", leave=False, delay=1) as bar:
        trying = Search[Setting, Trial](
            lambda some, replicas: try_all(some, replicas, search, targets, bar),
            is_good=lambda trial: trial.meets,
            is_hopeless=lambda trial: trial.status != "ok",
        )
        found = trying.fewest(settings, search.max_replicas)
    answer = answer_of(found, trying.trials, targets, prices)
    write_csv([trial_row(trial, targets) for trial in trying.trials], out_dir / TRIED_FILE)
    _write(answer, out_dir)
    print(in_words(answer))
    print(f"\n{out_dir}")
    if found is None:
        raise SystemExit(EXIT_NOT_MET)


def _write(answer: Mapping[str, Any], out_dir: Path) -> None:
    """Write the answer and, in place of an earlier one, the file of policies that its command names."""
    policies = (answer["chosen"] or {}).get("policies")
    (out_dir / POLICY_FILE).unlink(missing_ok=True)
    if policies is not None:
        write_atomically(out_dir / POLICY_FILE, yaml.safe_dump(policies, sort_keys=False).encode())
    write_atomically(out_dir / PLAN_FILE, (json.dumps(answer, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
