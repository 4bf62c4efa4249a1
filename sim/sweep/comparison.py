"""Which setting is better: paired differences over seeds, between two folders or within a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sim.errors import UserError
from sim.sweep.objective import higher_is_better, metric
from sim.sweep.paired import PairedDifference, paired_difference
from sim.sweep.runs import Run
from sim.sweep.settings import is_of_traffic, label, varying
from sim.tables import aligned, cell

METRICS = (
    *("request_goodput", "output_throughput", "p99_ttft_ms", "median_tpot_ms"),
    *("fairness.jain_index", "fairness.worst_adapter_p99_ttft_ms", "fairness.longest_wait_ms"),
)
Key = tuple[str | None, ...]


@dataclass(frozen=True)
class Difference:
    """One metric of one setting against the baseline, under one kind of traffic."""

    baseline: str
    setting: str
    traffic: str
    metric: str
    paired: PairedDifference

    @property
    def verdict(self) -> str:
        """Return better, worse, alike or unknown, of the setting."""
        return self.paired.verdict(higher_is_better(self.metric))

    def row(self) -> dict[str, Any]:
        """Return it as a row of a CSV file."""
        paired = asdict(self.paired)
        renamed = {"num_pairs": "pairs", "baseline": "baseline_mean", "low": "ci95_low", "high": "ci95_high"}
        return {
            **{name: getattr(self, name) for name in ("baseline", "setting", "traffic", "metric")},
            **{renamed.get(name, name): value for name, value in paired.items()},
            "relative": self.paired.relative,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """What was found, and what could not be compared."""

    differences: list[Difference]
    left_out: list[str]
    """Sentences on runs without a partner and runs that failed."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What A and B stand for."""


def compare_folders(a: Sequence[Run], b: Sequence[Run], metrics: Sequence[str]) -> Comparison:
    """Compare the runs of B with those of A, paired by every setting of which both have a common value.

    What they have no common value of is what is compared. Raises UserError where that leaves two runs for
    one place, or no pair.
    """
    names = _names([*a, *b])
    treated = [name for name in names if not _values(a, name) & _values(b, name)]
    keys = [name for name in names if name not in treated]
    sides = [_by_key(runs, keys, treated, f"{side}: ") for side, runs in (("A", a), ("B", b))]
    found = _compare(sides[0], sides[1], "AB", metrics, _traffic_names([*a, *b], keys))
    if not sides[0].keys() & sides[1].keys():
        raise UserError(
            "no pairs: no run of A and run of B are equal in "
            f"{', '.join(['seed', *keys])}{'; '.join(['', *found.left_out])}"
        )
    titles = {side: _title(runs, treated) for side, runs in (("A", a), ("B", b))}
    return replace(found, titles={side: title for side, title in titles.items() if title})


def compare_settings(runs: Sequence[Run], metrics: Sequence[str], baseline: str | None = None) -> Comparison:
    """Compare the settings of one sweep with its first one, or the one labelled ``baseline``.

    Raises UserError where there is one setting alone, or no such baseline.
    """
    names = _names(runs)
    treated = [name for name in names if not is_of_traffic(name)]
    keys = [name for name in names if is_of_traffic(name)]
    settings: dict[Key, list[Run]] = {}
    for run in runs:
        settings.setdefault(_key(run, treated), []).append(run)
    titles = {key: _title(some, treated) for key, some in settings.items()}
    if len(settings) < 2:
        raise UserError("one setting alone: expected a sweep over a policy or an engine setting")
    first = next(iter(settings))
    if baseline is not None:
        first = _baseline(titles, baseline)
    differences, left_out = [], []
    by_key = {key: _by_key(some, keys, (), f"{titles[key]}: ") for key, some in settings.items()}
    for key in settings:
        if key != first:
            pair = [titles[first], titles[key]]
            found = _compare(by_key[first], by_key[key], pair, metrics, _traffic_names(runs, keys))
            differences += found.differences
            left_out += found.left_out
    return Comparison(differences, list(dict.fromkeys(left_out)))


def without_repeated_bounds(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without the bounds (``bound``) of all settings but the first one's."""
    names = [name for name in _names(runs) if not is_of_traffic(name) and name != "bound"]
    first = _key(runs[0], names)
    return [run for run in runs if run.settings.get("bound", "null") == "null" or _key(run, names) == first]


def in_words(comparison: Comparison, metrics: Sequence[str]) -> str:
    """Return the comparison as a table of the given metrics, and what was left out."""
    shown = [found for found in comparison.differences if found.metric in metrics]
    titles = [f"{side}: {title}" for side, title in comparison.titles.items()]
    titles = titles or [f"Against {name}" for name in dict.fromkeys(found.baseline for found in shown)]
    head = ["setting", "traffic", "metric", "baseline", "mean", "difference", "95 % interval"]
    lines = aligned([*head, "relative", "pairs", "verdict"], [_cells(found) for found in shown], labels=3)
    note = "Interval: Student's t of the paired differences over seeds; alike: it holds 0."
    return "\n".join([*titles, "", *lines, "", note, *comparison.left_out])


def _cells(found: Difference) -> list[str]:
    paired = found.paired
    interval = "-" if paired.low is None else f"{_signed(paired.low)} to {_signed(paired.high)}"
    relative = "-" if paired.relative is None else f"{100 * paired.relative:+.1f} %"
    return [
        *(found.setting, found.traffic, found.metric),
        *(cell(paired.baseline), cell(paired.mean), _signed(paired.difference), interval),
        *(relative, str(paired.num_pairs), found.verdict),
    ]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{'+' if value > 0 else ''}{cell(value)}"


def _compare(
    a: Mapping[Key, Run],
    b: Mapping[Key, Run],
    titles: Sequence[str],
    metrics: Sequence[str],
    names: Mapping[Key, str],
) -> Comparison:
    """Compare two sets of runs by key, whose last entry is the seed."""
    groups: dict[Key, list[tuple[Run, Run]]] = {}
    left_out = _without_partner(a, b, titles)
    for key, run in a.items():
        if key in b:
            if run.ok and b[key].ok:
                groups.setdefault(key[:-1], []).append((run, b[key]))
            else:
                left_out.append(f"Left out, as a run failed: {run.path}, {b[key].path}.")
    differences: list[Difference] = []
    for key, pairs in groups.items():
        for name in metrics:
            values = [(metric(one.summary, name), metric(other.summary, name)) for one, other in pairs]
            known = [(one, other) for one, other in values if one is not None and other is not None]
            if known:
                paired = paired_difference(*zip(*known, strict=True))
                differences.append(Difference(titles[0], titles[1], names[key], name, paired))
    lacking = [name for name in metrics if name not in {found.metric for found in differences}]
    if lacking and groups:
        left_out.append(f"Left out: {', '.join(lacking)}, which no pair of runs has.")
    return Comparison(differences, left_out)


def _without_partner(a: Mapping[Key, Run], b: Mapping[Key, Run], titles: Sequence[str]) -> list[str]:
    counts = [len(a.keys() - b.keys()), len(b.keys() - a.keys())]
    return [
        f"Left out: {count} of {len(runs)} runs of {title} have no partner with the same traffic and seed."
        for count, runs, title in zip(counts, (a, b), titles, strict=True)
        if count
    ]


def _by_key(runs: Sequence[Run], keys: Sequence[str], treated: Sequence[str], where: str) -> dict[Key, Run]:
    """Return the runs by what pairs them and the seed. Raises UserError for two with the same."""
    found: dict[Key, Run] = {}
    for run in runs:
        key = _key(run, [*keys, "seed"])
        if key in found:
            differing = [name for name in varying([run.settings, found[key].settings]) if name in treated]
            what = f"differ in {', '.join(differing)}" if differing else "are alike in all settings"
            raise UserError(f"{where}{found[key].path} and {run.path} {what}; expected one of them")
        found[key] = run
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the settings that vary, but for the seed and for what is merely recorded."""
    names = varying([run.settings for run in runs])
    return [name for name in names if name != "seed" and not name.startswith("record.")]


def _key(run: Run, names: Sequence[str]) -> Key:
    return tuple(run.settings.get(name) for name in names)


def _values(runs: Sequence[Run], name: str) -> set[str | None]:
    return {run.settings.get(name) for run in runs}


def _title(runs: Sequence[Run], treated: Sequence[str]) -> str:
    """Return what is set in ``runs``, in the words of ``sweep.csv`` where there is one."""
    first = runs[0]
    given = [name for name in first.columns if name in treated or name.partition(".")[0] in treated]
    return label(dict(first.columns), given) if given else label(first.settings, treated)


def _traffic_names(runs: Sequence[Run], keys: Sequence[str]) -> dict[Key, str]:
    """Return how each kind of traffic is called, by the values of ``keys``."""
    named = all(run.columns for run in runs)
    names = list(keys)
    if named:
        columns = varying([{**run.columns, "seed": ""} for run in runs])
        names = ["workload", *(n for n in columns if n != "workload" and (is_of_traffic(n) or n in keys))]
    found = {}
    for run in runs:
        settings = run.columns if named else run.settings
        found[_key(run, keys)] = label(settings, names).removeprefix("workload ") or "all"
    return found


def _baseline(titles: Mapping[Key, str], wanted: str) -> Key:
    for key, title in titles.items():
        if wanted in (title, title.replace(" ", "=")):
            return key
    raise UserError(f"baseline={wanted!r}: no such setting; accepted: {'; '.join(titles.values())}")
