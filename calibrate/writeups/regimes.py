"""Prompt regimes: `short` and `long`, from the workload of that name."""

from sim.sweep.runs import Run


def regime_of(job: Run) -> str:
    """Return the regime of a job: `short` of workload=short_prompts, and any other workload's name."""
    return job.columns.get("workload", "prompts").removesuffix("_prompts")
