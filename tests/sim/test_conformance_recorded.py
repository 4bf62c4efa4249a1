"""Our decisions against vLLM 0.25.1's answers to recorded cases: exact equality, without vLLM."""

from collections import Counter

import pytest

from tests.conformance.recorded import RULES, Recorded, our_answers, read

RECORDS = list(read())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.kind}: {' '.join(record.rule)}")
def test_the_same_decisions(record: Recorded) -> None:
    answers, rules = our_answers(record)
    assert answers == record.answers
    assert rules == set(record.rule)


def test_every_rule_has_cases() -> None:
    shown = Counter(rule for record in RECORDS for rule in record.rule)
    assert len(RECORDS) >= 200
    assert set(shown) == set(RULES)
    assert min(shown.values()) >= 10
