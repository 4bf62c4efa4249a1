"""The published finding on 1,000 adapters, beside what this sweep says about it.

Priyal Taneja, "Multi-LoRA at scale: an empirical map of vLLM's operating range": vLLM with 1,000 synthetic
adapters on one GPU. What we have of it names neither GPU nor model nor rank: only ratios and shapes compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.numbers import duration, percent, whole
from reports.sweep.answer import swap_share
from reports.sweep.choose import Recommendation, p99_ttft, throughput, traffics
from reports.sweep.load import Row, popularity

UNIFORM_TOKENS_PER_S = 884.0
SKEWED_TOKENS_PER_S = 2167.0
REPORTED = SKEWED_TOKENS_PER_S / UNIFORM_TOKENS_PER_S
MUCH, SLIGHTLY = 1.5, 1.1
"""Ratios of throughput that count as much slower, and as slower at all."""
SECONDS_MS = 1000.0
LESS = 0.01

YES, PARTLY, NO = "agrees", "partly", "differs"


@dataclass(frozen=True)
class Claim:
    """One part of the finding."""

    reported: str
    here: str
    verdict: str


def comparison(choice: Recommendation | None) -> str:
    """Return a sentence on uniform against skewed traffic at the chosen setting; empty without both."""
    found = list(choice.rows.values()) if choice else []
    uniform = next((row for row in found if popularity(row.summary["config"]) == "uniform"), None)
    skewed = next((row for row in found if popularity(row.summary["config"]) != "uniform"), None)
    if uniform is None or skewed is None or not throughput(uniform):
        return ""
    ratio = throughput(skewed) / throughput(uniform)
    return (
        f"Throughput is {ratio:.2f} times as high under {skewed.traffic} as under {uniform.traffic} traffic; "
        f"a published benchmark reports {REPORTED:.2f} times ({whole(SKEWED_TOKENS_PER_S)} against "
        f"{whole(UNIFORM_TOKENS_PER_S)} tokens/s), on a GPU, model and rank that we do not know."
    )


def claims(rows: Sequence[Row], choice: Recommendation | None) -> list[Claim]:
    """Return the parts of the finding that this sweep can speak to; other settings as in ``choice``."""
    if choice is None:
        return []
    lines: dict[str, dict[int, Row]] = {traffic: {} for traffic in traffics(rows)}
    for row in rows:
        if row.ok and row.max_loras and row.others == choice.row.others:
            lines[row.traffic][row.max_loras] = row
    lines = {traffic: dict(sorted(line.items())) for traffic, line in lines.items() if line}
    long = {traffic: line for traffic, line in lines.items() if len(line) > 1}
    return [*_skew(lines, choice), *([_few_slots(long), _many_slots(long)] if long else [])]


def _skew(lines: Mapping[str, Mapping[int, Row]], choice: Recommendation) -> list[Claim]:
    """Uniform against skewed traffic, at the chosen ``max_loras`` and over the sweep."""
    kinds = {
        traffic: popularity(next(iter(line.values())).summary["config"]) for traffic, line in lines.items()
    }
    uniform = next((traffic for traffic, kind in kinds.items() if kind == "uniform"), None)
    skewed = next((traffic for traffic, kind in kinds.items() if kind != "uniform"), None)
    if uniform is None or skewed is None:
        return []
    common = [size for size in lines[uniform] if size in lines[skewed] and throughput(lines[uniform][size])]
    if not common:
        return []
    ratios = {size: throughput(lines[skewed][size]) / throughput(lines[uniform][size]) for size in common}
    at = (
        choice.row.max_loras if choice.row.max_loras in ratios else max(ratios, key=lambda size: ratios[size])
    )
    slow, fast = lines[uniform][at], lines[skewed][at]
    low, high = min(ratios.values()), max(ratios.values())
    here = (
        f"{whole(throughput(slow))} ({uniform}) against {whole(throughput(fast))} tokens/s ({skewed}) at "
        f"max_loras {at}, {ratios[at]:.2f} times as much; over the sweep {low:.2f} to {high:.2f} times. "
        f"Under {uniform} traffic {swap_share(slow)}; under {skewed} traffic {swap_share(fast)}."
    )
    verdict = YES if ratios[at] >= MUCH else PARTLY if high >= SLIGHTLY else NO
    text = (
        f"Uniform traffic is much slower than skewed traffic: {whole(UNIFORM_TOKENS_PER_S)} against "
        f"{whole(SKEWED_TOKENS_PER_S)} tokens/s, {REPORTED:.2f} times as much."
    )
    return [Claim(text, here, verdict)]


def _few_slots(lines: Mapping[str, Mapping[int, Row]]) -> Claim:
    """p99 TTFT with the fewest slots against the lowest of the sweep."""
    parts, agree = [], []
    for traffic, line in lines.items():
        few = next(iter(line.values()))
        least = min(line.values(), key=p99_ttft)
        agree.append(p99_ttft(few) - p99_ttft(least) >= SECONDS_MS)
        parts.append(
            f"{traffic}: p99 TTFT {duration(few.metric('p99_ttft_ms'))} at max_loras {few.max_loras}, lowest "
            f"{duration(least.metric('p99_ttft_ms'))} at {least.max_loras}"
        )
    text = "Too small a max_loras costs seconds of time to first token."
    return Claim(text, "; ".join(parts) + ".", _verdict(agree))


def _many_slots(lines: Mapping[str, Mapping[int, Row]]) -> Claim:
    """Output throughput with the most slots against the highest of the sweep."""
    parts, agree = [], []
    for traffic, line in lines.items():
        *_, many = line.values()
        top = max(line.values(), key=throughput)
        loss = 1 - throughput(many) / throughput(top) if throughput(top) else 0.0
        agree.append(loss >= LESS)
        less = f"{percent(loss)} less" if agree[-1] else f"{percent(loss)} less, no real loss"
        highest = f"{traffic}: {whole(throughput(top))} tokens/s at max_loras {top.max_loras}"
        rest = f"at {many.max_loras} {less}" if many is not top else "the largest that ran"
        parts.append(f"{highest}, {rest}")
    return Claim("Too large a max_loras costs throughput.", "; ".join(parts) + ".", _verdict(agree))


def _verdict(agree: Sequence[bool]) -> str:
    return YES if all(agree) else PARTLY if any(agree) else NO
