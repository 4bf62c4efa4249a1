"""Record vLLM's answers to random cases, until each rule has some: `python -m tests.conformance.record`.

Needs vllm==0.25.1 (no GPU). Replayed without it by tests/sim/test_conformance_recorded.py.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from tests.conformance import graphs, scheduling, tiers
from tests.conformance.recorded import FILE, RULES, Recorded, our_answers, write
from tests.conformance.vllm_graphs import their_answers
from tests.conformance.vllm_scheduler import TheirScheduler, base_config
from tests.conformance.vllm_tiers import TheirTiers

CASES_A_RULE = 15
NUM_SCHEDULER_CASES = 240
MOST_ANSWERS = 150
"""Of a scheduler's case, so that the file stays small."""


def scheduler_records(vllm_config: Any) -> Iterator[Recorded]:
    """Yield NUM_SCHEDULER_CASES, and then only those that show a rule of which there are too few."""
    shown: Counter[str] = Counter()
    for seed in count():
        if (enough := shown["case"] >= NUM_SCHEDULER_CASES) and all(
            shown[rule] >= CASES_A_RULE for rule in scheduling.RULES
        ):
            return
        case = scheduling.draw_case(random.Random(seed))
        record = Recorded("scheduler", [], asdict(case), [])
        answers, rules = our_answers(record)
        if len(answers) > MOST_ANSWERS or (enough and all(shown[rule] >= CASES_A_RULE for rule in rules)):
            continue
        shown.update({"case", *rules})
        theirs = scheduling.play(case, TheirScheduler(case.config, vllm_config))
        yield record._replace(rule=sorted(rules), answers=theirs)


def tiers_records() -> Iterator[Recorded]:
    """Yield cases with a cascade."""
    shown: Counter[str] = Counter()
    for seed in count():
        if all(shown[rule] >= CASES_A_RULE for rule in tiers.RULES):
            return
        case = tiers.draw_case(random.Random(seed), num_steps=10)
        record = Recorded("tiers", [], asdict(case), [])
        rules = our_answers(record)[1]
        if any(shown[rule] < CASES_A_RULE for rule in rules):
            shown.update(rules)
            yield record._replace(rule=sorted(rules), answers=tiers.play(case, TheirTiers(case)))


def graphs_records() -> Iterator[Recorded]:
    """Yield cases with and without specialisation."""
    for seed in range(2 * CASES_A_RULE):
        case = graphs.draw_case(random.Random(seed), num_shapes=40)
        rules = [graphs.RULES[0], *graphs.RULES[1:][: case.config.specialize_active_lora]]
        yield Recorded("graphs", rules, asdict(case), their_answers(case))


def main() -> None:
    """Write the file anew."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        records = [*scheduler_records(base_config(Path(folder))), *tiers_records(), *graphs_records()]
    write(records)
    shown = Counter(rule for record in records for rule in record.rule)
    print(f"{len(records)} cases in {FILE}, {FILE.stat().st_size} bytes")
    for rule in RULES:
        print(f"{shown[rule]:6} {rule}")


if __name__ == "__main__":
    main()
