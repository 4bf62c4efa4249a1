"""The committed reference string, and the misses of each policy on it.

``python -m tests.eviction_golden`` writes the misses anew (the references stay as they are).
"""

import csv
from pathlib import Path

from policies.eviction import POLICIES, replay

FOLDER = Path(__file__).parent / "eviction_golden_data"
REFERENCES = FOLDER / "references.txt"
MISSES = FOLDER / "misses.csv"
CAPACITIES = (8, 32, 100)


def read_references() -> list[int]:
    return [int(word) for word in REFERENCES.read_text().split()]


def read_misses() -> dict[tuple[str, int], int]:
    with MISSES.open(newline="") as file:
        return {(row["policy"], int(row["capacity"])): int(row["misses"]) for row in csv.DictReader(file)}


def count_misses(policy: str, capacity: int, references: list[int]) -> int:
    return replay(policy, capacity, references).count(False)


def main() -> None:
    references = read_references()
    with MISSES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["policy", "capacity", "misses"])
        for policy in POLICIES:
            for capacity in CAPACITIES:
                writer.writerow([policy, capacity, count_misses(policy, capacity, references)])


if __name__ == "__main__":
    main()
