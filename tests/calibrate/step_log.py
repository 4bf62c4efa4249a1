"""Steps as a probe logs them, whose phases take what a test says."""

from typing import Any

from calibrate.dataset import STEP_COLUMNS


def step(
    phase_ms: float, remap_ms: float | None = None, activates: int = 0, phase: str = "replay"
) -> dict[str, Any]:
    """A step whose phases take so long each; one with another mapping writes it for `remap_ms`."""
    mapping_ms = 0.0 if remap_ms is None else 0.5
    begun_ms = 1000.0
    mapped_ms = begun_ms + phase_ms + mapping_ms
    launch_ms = mapped_ms + (phase_ms if remap_ms is None else remap_ms - 0.5)
    times_ms = {
        "schedule_start_s": begun_ms,
        "lora_start_s": begun_ms + phase_ms,
        "lora_end_s": mapped_ms,
        "launch_start_s": launch_ms,
        "launch_end_s": launch_ms + phase_ms,
        "result_end_s": 2000,
        "update_end_s": 2000 + phase_ms,
        "mapping_s": mapping_ms,
    }
    counts = {"num_reqs": 1, "num_tokens": 1, "num_padded_tokens": 1, "activates": activates}
    texts = {"phase": phase, "cell": "c", "graph": "full"}
    seconds = {name: value / 1e3 for name, value in times_ms.items()}
    return dict.fromkeys(STEP_COLUMNS, 0) | seconds | counts | texts
