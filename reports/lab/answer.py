"""What a sweep over policies says, in words and tables; every sentence comes from the numbers."""

from collections.abc import Sequence

from reports.lab.data import Case, Lab, Share
from reports.lab.plots import signed_percent, write_metric
from reports.numbers import NONE, duration, listed, number, percent, whole
from reports.table import Table
from sim.sweep.objective import higher_is_better
from sim.sweep.paired import PairedDifference

HALF = 0.5


def headline(lab: Lab) -> str:
    """Return the page's main heading."""
    winners = {case.policy for traffic in lab.traffics if (case := _sure_winner(lab, traffic)) is not None}
    if not winners:
        return f"No policy is shown to beat {lab.baseline}"
    return f"{listed(sorted(winners))} {'beats' if len(winners) == 1 else 'beat'} {lab.baseline}"


def sentences(lab: Lab) -> list[str]:
    """Return a sentence for each traffic shape: the winner, by how much, how sure, how far to the bound."""
    return [_sentence(lab, traffic) for traffic in lab.traffics]


def losses(lab: Lab) -> list[str]:
    """Return where a policy that wins somewhere is shown to be worse than the baseline."""
    winners = dict.fromkeys(
        case.policy for traffic in lab.traffics if (case := _sure_winner(lab, traffic)) is not None
    )
    return [
        f"{policy} loses to {lab.baseline} under {traffic} traffic: {_difference(found)}."
        for policy in winners
        for traffic in lab.traffics
        if (found := lab.against_baseline(traffic, policy)) is not None
        and found.verdict(higher_is_better(lab.objective)) == "worse"
    ]


def _sure_winner(lab: Lab, traffic: str) -> Case | None:
    """Return the best case of a traffic shape, if its interval against the baseline is on the better side."""
    best = lab.winner(traffic)
    if best is None or best.policy == lab.baseline:
        return None
    found = lab.against_baseline(traffic, best.policy)
    sure = found is not None and found.verdict(higher_is_better(lab.objective)) == "better"
    return best if sure else None


def _sentence(lab: Lab, traffic: str) -> str:
    best = lab.winner(traffic)
    if best is None:
        return f"Under {traffic} traffic every run failed."
    value = write_metric(lab.objective, best.mean(lab.objective))
    found = lab.against_baseline(traffic, best.policy)
    if best.policy == lab.baseline or found is None:
        return f"Under {traffic} traffic {best.policy} itself has the best mean {lab.objective}: {value}."
    tuned = f" at {best.tuned}" if best.tuned else ""
    verdict = found.verdict(higher_is_better(lab.objective))
    claim = f"{best.policy}{tuned} has the best mean {lab.objective}, {value}: {_difference(found)}"
    if verdict == "better":
        text = f"Under {traffic} traffic {claim} against {lab.baseline}."
        return text + _bound_words(lab, traffic, best.policy)
    doubt = "from one seed" if verdict == "unknown" else "which may be chance"
    return f"Under {traffic} traffic the best is not shown to beat {lab.baseline}: {claim}, {doubt}."


def _difference(found: PairedDifference) -> str:
    """Return a relative difference with its interval."""
    if found.relative is None:
        return f"{number(found.difference)} more"
    text = signed_percent(found.relative)
    if found.low is None or found.high is None:
        return text
    low, high = (signed_percent(end / abs(found.baseline)) for end in (found.low, found.high))
    return f"{text} ({low} to {high})"


def _bound_words(lab: Lab, traffic: str, policy: str) -> str:
    found = lab.share_closed(traffic, policy)
    return "" if found is None else f" It closes {_share(found)} of the gap to the bound."


def _share(found: Share) -> str:
    ends = (found.low, found.high)
    text, *interval = (percent(part).replace("-", "−") for part in (found.share, *ends) if part is not None)
    return f"{text} ({' to '.join(interval)})" if interval else text


def winners_table(lab: Lab) -> Table:
    """Return baseline, winner and bound for each traffic shape."""
    head = ["traffic", "best policy", "its engine settings", lab.baseline, "best", "difference"]
    body, classes = [], {}
    for traffic in lab.traffics:
        best, base, bound = lab.winner(traffic), lab.case(traffic, lab.baseline), lab.bounds.get(traffic)
        if best is None:
            body.append([traffic, "every run failed", *[NONE] * 6])
            continue
        found, closed = lab.against_baseline(traffic, best.policy), lab.share_closed(traffic, best.policy)
        is_base = best.policy == lab.baseline
        values = [_mean(lab, case) for case in (base, best)]
        difference = NONE if is_base or found is None else _difference(found)
        shown = NONE if closed is None or is_base else _share(closed)
        if shown != NONE and closed is not None:
            classes[len(body), 7] = "good" if closed.share >= HALF else "poor"
        top = _mean(lab, bound)
        body.append([traffic, best.policy, best.tuned or NONE, *values, difference, top, shown])
    return Table([*head, "bound", "gap closed"], body, 3, classes)


def _mean(lab: Lab, case: Case | None) -> str:
    return NONE if case is None else write_metric(lab.objective, case.mean(lab.objective))


def gap_table(lab: Lab) -> Table:
    """Return the share of the gap to the bound that every policy closes, by traffic shape."""
    shapes = [traffic for traffic in lab.traffics if traffic in lab.bounds]
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
        for policy in [*lab.policies, None]:
            case = lab.bounds.get(traffic) if policy is None else lab.case(traffic, policy)
            if case is not None:
                name = "bound" if policy is None else case.policy
                labels = [traffic, name, case.tuned or NONE, str(len(case.runs))]
                body.append([*labels, *(write(case.mean(metric)) for _, metric, write in metrics)])
    head = ["traffic", "policy", "engine settings", "seeds", *(title for title, _, _ in metrics)]
    return Table(head, body, 4)


def warnings(lab: Lab) -> list[str]:
    """Return what a reader must know before trusting the page."""
    found = []
    if lab.num_failed:
        found.append(f"{lab.num_failed} of {lab.num_runs} runs failed; sweep.csv says why.")
    fewest = min(len(case.runs) for case in lab.cases.values())
    if fewest < 2:
        found.append("Some policies ran with one seed alone: what they differ by has no interval.")
    ranges = dict.fromkeys(
        str(text)
        for case in (*lab.cases.values(), *lab.bounds.values())
        for run in case.runs.values()
        for text in run.summary.get("profile", {}).get("outside_range", ())
    )
    found += [f"Outside what was measured: {text}. The cost there is extrapolated." for text in ranges]
    return found


def in_short(lab: Lab) -> Sequence[str]:
    """Return the answer for a terminal."""
    served = [f"\nTo serve {traffics} traffic so:\n{command}" for traffics, command in commands(lab).items()]
    return [headline(lab) + ".", "", *sentences(lab), *losses(lab), *served]


def commands(lab: Lab) -> dict[str, str]:
    """Return the complete ``vllm serve`` command of each sure winner, by the traffic shapes that it wins."""
    winners: dict[tuple[str, str], list[Case]] = {}
    for traffic in lab.traffics:
        if (case := _sure_winner(lab, traffic)) is not None:
            winners.setdefault((case.policy, case.tuned), []).append(case)
    return {listed([case.traffic for case in cases]): cases[0].serve_command for cases in winners.values()}
