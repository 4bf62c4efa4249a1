"""`make bench`: that its work can be done. How fast it is done is no matter of a test."""

from benchmarks.workload import REFERENCE, overrides, simulate


def test_the_reference_work_is_simulated() -> None:
    timing = simulate(workload__num_requests=20, workload__output_length=3)
    assert (timing.num_requests, timing.num_tokens) == (20, 60)
    assert timing.num_steps > 0
    assert timing.num_events > 20


def test_changes_take_the_place_of_the_references() -> None:
    words = overrides(workload__num_requests=20)
    assert "workload.num_requests=20" in words
    assert len(words) == len(REFERENCE)
