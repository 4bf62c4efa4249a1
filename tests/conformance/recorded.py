"""The recorded cases: one file, a JSON object a line, with what vLLM answered."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.conformance import graphs, scheduling, tiers

FILE = Path(__file__).parent / "recorded" / "vllm_0_25_1.jsonl.gz"
RULES = (*scheduling.RULES, *tiers.RULES, *graphs.RULES)
CASES: dict[str, Any] = {
    "scheduler": scheduling.Case,
    "tiers": tiers.TiersCase,
    "graphs": graphs.GraphsCase,
}


class Recorded(NamedTuple):
    kind: str
    """A key of CASES."""
    rule: list[str]
    """The rules of RULES that the case shows."""
    case: dict[str, Any]
    answers: Any
    """vLLM's."""


def write(records: Iterable[Recorded]) -> None:
    lines = (json.dumps(record._asdict(), separators=(",", ":")) + "\n" for record in records)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def read() -> Iterator[Recorded]:
    for line in gzip.decompress(FILE.read_bytes()).splitlines():
        yield Recorded(**json.loads(line))


def our_answers(record: Recorded) -> tuple[Any, set[str]]:
    """What we answer, and the rules that show."""
    case = CASES[record.kind](**record.case)
    if record.kind == "graphs":
        return graphs.our_answers(case), set(record.rule)
    play, subject = (
        (scheduling.play, scheduling.Ours(case.config))
        if record.kind == "scheduler"
        else (tiers.play, tiers.OurTiers(case))
    )
    answers = play(case, subject)
    return answers, {rule for rule in RULES if subject.seen[rule]}
