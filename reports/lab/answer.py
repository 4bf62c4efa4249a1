"""What a sweep over policies says, in words and tables; every sentence comes from the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent

from reports.lab.data import FREE_ADAPTERS, FREE_SWAPS, Case, Lab, Sensitivity, Share, best_of
from reports.lab.plots import signed_percent, write_metric
from reports.numbers import NONE, duration, listed, number, percent, whole
from reports.table import Table
from sim.results import POLICY_FILE
from sim.sweep.objective import higher_is_better
from sim.sweep.paired import PairedDifference
from sim.tables import aligned

HALF = 0.5
MOST_NAMED = 3
"""Ties that a sentence names."""


def headline(lab: Lab) -> str:
    """Return the page's main heading."""
    winners = {case.policy for traffic in lab.traffics if (case := lab.winner(traffic)) is not None}
    if not winners:
        return f"No policy is shown to beat {lab.baseline}"
    return f"{listed(sorted(winners))} {'beats' if len(winners) == 1 else 'beat'} {lab.baseline}"


def sentences(lab: Lab) -> list[str]:
    """Return a sentence for each traffic shape: the winner, by how much, how sure, how far to the bound."""
    return [_sentence(lab, traffic) for traffic in lab.traffics]


def losses(lab: Lab) -> list[str]:
    """Return where a policy that wins somewhere is shown to be worse than the baseline."""
    winners = dict.fromkeys(
        case.policy for traffic in lab.traffics if (case := lab.winner(traffic)) is not None
    )
    return [
        f"{policy} loses to {lab.baseline} under {traffic} traffic: {_difference(found)}."
        for policy in winners
        for traffic in lab.traffics
        if (found := lab.against_baseline(traffic, policy)) is not None
        and found.verdict(higher_is_better(lab.objective)) == "worse"
    ]


def _sentence(lab: Lab, traffic: str) -> str:
    winner, best = lab.winner(traffic), lab.best(traffic)
    if best is None:
        return f"Under {traffic} traffic every run failed."
    if winner is None:
        return _no_winner(lab, best)
    found = lab.against_baseline(traffic, winner.policy)
    assert found is not None
    tuned = f" at {winner.tuned}" if winner.tuned else ""
    value = write_metric(lab.objective, winner.mean(lab.objective))
    text = f"Under {traffic} traffic {winner.policy}{tuned} serves best: {lab.objective} {value}, "
    text += f"{_difference(found)} against {lab.baseline}."
    return " ".join([text, *_bound_words(lab, traffic, winner.policy), *_tie_words(lab, traffic)])


def _no_winner(lab: Lab, best: Case) -> str:
    value = write_metric(lab.objective, best.mean(lab.objective))
    found = lab.against_baseline(best.traffic, best.policy)
    if best.policy == lab.baseline or found is None:
        return (
            f"Under {best.traffic} traffic {best.policy} itself has the best mean {lab.objective}: {value}."
        )
    tuned = f" at {best.tuned}" if best.tuned else ""
    doubt = "from one seed" if found.verdict(True) == "unknown" else "which may be chance"
    return (
        f"Under {best.traffic} traffic none is shown to beat {lab.baseline}: {best.policy}{tuned} has the "
        f"best mean {lab.objective}, {value}: {_difference(found)}, {doubt}."
    )


def _tie_words(lab: Lab, traffic: str) -> list[str]:
    """Return sentences on those whose difference from the winner may be chance, on either side of it."""
    winner, ties = lab.winner(traffic), lab.ties(traffic)
    if winner is None or not ties:
        return []
    ahead = [case for case in ties if best_of([winner, case], lab.objective) is not winner]
    behind = [case for case in ties if case not in ahead]
    sides = {
        f"Ahead on average, but not shown to be better than {lab.baseline}": ahead,
        "As good by these seeds": behind,
    }
    return [f"{claim}: {_some(cases)}." for claim, cases in sides.items() if cases]


def _some(cases: Sequence[Case]) -> str:
    names = [case.policy for case in cases]
    more = len(names) - MOST_NAMED
    return listed(names if more <= 1 else [*names[:MOST_NAMED], f"{more} more"])


def _difference(found: PairedDifference) -> str:
    """Return a relative difference with its interval."""
    if found.relative is None:
        return f"{number(found.difference)} more"
    text = signed_percent(found.relative)
    if found.low is None or found.high is None:
        return text
    low, high = (signed_percent(end / abs(found.baseline)) for end in (found.low, found.high))
    return f"{text} ({low} to {high})"


def _bound_words(lab: Lab, traffic: str, policy: str) -> list[str]:
    found = lab.share_closed(traffic, policy)
    if found is None:
        return []
    to = "what nothing can exceed" if lab.ceiling(traffic) else "an engine with free adapters"
    return [f"It closes {_share(found)} of the gap to {to}."]


def _share(found: Share) -> str:
    ends = (found.low, found.high)
    text, *interval = (percent(part).replace("-", "−") for part in (found.share, *ends) if part is not None)
    return f"{text} ({' to '.join(interval)})" if interval else text


def winners_table(lab: Lab) -> Table:
    """Return winner, baseline, references and bound for each traffic shape."""
    head = ["traffic", "best shown to be better", "gap closed", "difference", "best", "baseline"]
    body, classes = [], {}
    for traffic in lab.traffics:
        best, base = lab.winner(traffic), lab.case(traffic, lab.baseline)
        limits = [_mean(lab, lab.reference(traffic)), _mean_of(lab, lab.ceiling(traffic))]
        if best is None:
            body.append([traffic, "none", *[NONE] * 3, _mean(lab, base), *limits])
            continue
        found, closed = lab.against_baseline(traffic, best.policy), lab.share_closed(traffic, best.policy)
        if closed is not None:
            classes[len(body), 2] = "good" if closed.share >= HALF else "poor"
        tuned = f", {best.tuned}" if best.tuned else ""
        shown = [NONE if closed is None else _share(closed), NONE if found is None else _difference(found)]
        body.append([traffic, best.policy + tuned, *shown, _mean(lab, best), _mean(lab, base), *limits])
    free = "free adapters" if higher_is_better(lab.objective) else "free swaps"
    return Table([*head, free, "ceiling"], body, 2, classes)


def _mean(lab: Lab, case: Case | None) -> str:
    return NONE if case is None else write_metric(lab.objective, case.mean(lab.objective))


def _mean_of(lab: Lab, values: Mapping[str, float]) -> str:
    return write_metric(lab.objective, sum(values.values()) / len(values)) if values else NONE


def gap_table(lab: Lab) -> Table:
    """Return the share of the gap to the bound that every policy closes, by traffic shape."""
    shapes = [traffic for traffic in lab.traffics if lab.bound(traffic)]
    body = [
        [policy, *(NONE if (it := lab.share_closed(t, policy)) is None else _share(it) for t in shapes)]
        for policy in lab.policies
        if policy != lab.baseline
    ]
    return Table(["policy", *shapes], body)


_FAIRNESS = (
    ("Jain index", "fairness.jain_index", number),
    ("worst adapter’s p99 TTFT", "fairness.worst_adapter_p99_ttft_ms", duration),
    ("longest wait", "fairness.longest_wait_ms", duration),
)
_MAIN = (
    ("goodput, requests/s", "request_goodput", number),
    ("output tokens/s", "output_throughput", whole),
    ("p99 TTFT", "p99_ttft_ms", duration),
    ("median TPOT", "median_tpot_ms", duration),
    ("adapter loads", "adapter_loads", whole),
    ("activations", "adapter_activations", whole),
)


def result_table(lab: Lab) -> Table:
    """Return the means over the seeds of every policy under every traffic shape, fairness last."""
    metrics = (*_MAIN, *_FAIRNESS)
    body = []
    for traffic in lab.traffics:
        cases = [(policy, lab.case(traffic, policy)) for policy in lab.policies]
        for name, case in [
            *cases,
            *((title, lab.reference(traffic, it)) for it, title in _REFERENCES.items()),
        ]:
            if case is not None:
                labels = [
                    traffic,
                    name,
                    "" if name != case.policy else case.tuned or NONE,
                    str(len(case.runs)),
                ]
                body.append([*labels, *(write(case.mean(metric)) for _, metric, write in metrics)])
    head = ["traffic", "policy", "engine settings", "seeds", *(title for title, _, _ in metrics)]
    return Table(head, body, 4)


_REFERENCES = {FREE_ADAPTERS: "reference: free adapters", FREE_SWAPS: "reference: free swaps"}


def warnings(lab: Lab, sensitivity: Sequence[Sensitivity] = ()) -> list[str]:
    """Return what a reader must know before trusting the page."""
    found = _lab_warnings(lab)
    for axis in sensitivity:
        found += [f"Sensitivity to {axis.axis}: {text}" for text in _lab_warnings(axis.lab)]
    return list(dict.fromkeys(found))


def _lab_warnings(lab: Lab) -> list[str]:
    found = []
    if lab.failed:
        first = lab.failed[0]
        said = str(first.summary.get("message") or "no message")
        found.append(f"{len(lab.failed)} of {len(lab.runs)} runs failed; the first, {first.path}: {said}")
    found += [
        f"{traffic}: only seeds {', '.join(lab.seeds[traffic])} are compared, for not all ran with "
        f"{', '.join(seeds)}."
        for traffic, seeds in lab.left_out.items()
    ]
    most = max(case.num_tried for case in lab.cases.values())
    once = {case.policy: case.tuned for case in lab.cases.values() if case.num_tried == 1 < most}
    if once:
        where = listed(sorted(set(once.values())))
        found.append(
            f"{len(once)} of {len(lab.policies)} policies were tried at {where} alone, "
            f"the others at up to {most} settings of the engine: they might do better elsewhere."
        )
    if any(len(seeds) < 2 for seeds in lab.seeds.values()):
        found.append("Some policies ran with one seed alone: what they differ by has no interval.")
    cases = (*lab.cases.values(), *lab.references.values())
    summaries = [run.summary for case in cases for run in case.runs.values()]
    found += dict.fromkeys(f"{text}." for summary in summaries for text in summary.get("warnings", ()))
    ranges = dict.fromkeys(
        str(text) for summary in summaries for text in summary.get("profile", {}).get("outside_range", ())
    )
    return found + [f"Outside what was measured: {text}. The cost there is extrapolated." for text in ranges]


def dependence(found: Sensitivity) -> list[str]:
    """Return, for each policy, at which values of an axis it is shown to be better than the baseline."""
    lab = found.lab
    by_value = dict(zip(lab.traffics, found.values, strict=True))
    texts = []
    for policy in lab.policies:
        if policy == lab.baseline:
            continue
        of: dict[str, list[str]] = {}
        for traffic in lab.traffics:
            verdict = lab.verdict(lab.case(traffic, lab.baseline), lab.case(traffic, policy))
            of.setdefault(verdict, []).append(f"{by_value[traffic]:g}")
        said = [f"{_VERDICTS[verdict]} at {listed(values)}" for verdict, values in of.items()]
        texts.append(f"{policy} {', '.join(said)}.")
    return texts


_VERDICTS = {
    "better": "is shown to be better",
    "worse": "loses",
    "alike": "ties (the difference may be chance)",
    "unknown": "cannot be told apart (one seed)",
}


def in_short(lab: Lab) -> Sequence[str]:
    """Return the answer for a terminal: a table, sentences, and what to serve with."""
    table = winners_table(lab)
    served = []
    for made in commands(lab):
        served += [f"\nTo serve {made.traffics} traffic so:\n{made.command}"]
        if made.policies is not None:
            served += [f"{POLICY_FILE} (also {made.path}):\n{indent(made.policies.rstrip(), '  ')}"]
    lines = aligned(table.head, table.rows, table.labels)
    return [
        headline(lab) + f", judged by {lab.objective}.",
        "",
        *lines,
        "",
        *sentences(lab),
        *losses(lab),
        *served,
    ]


@dataclass(frozen=True)
class Served:
    """What serves some traffic shapes best."""

    traffics: str
    command: str
    """The complete ``vllm serve`` command."""
    policies: str | None
    """What the file has in it that the command names; None where the policies are vLLM's own."""
    path: str


def commands(lab: Lab) -> list[Served]:
    """Return what to start for each winner, by the traffic shapes that it wins."""
    winners: dict[tuple[str, str], list[Case]] = {}
    for traffic in lab.traffics:
        if (case := lab.winner(traffic)) is not None:
            winners.setdefault((case.policy, case.tuned), []).append(case)
    return [
        Served(
            listed([case.traffic for case in cases]),
            cases[0].serve_command,
            cases[0].policy_file,
            str(cases[0].policy_path),
        )
        for cases in winners.values()
    ]
