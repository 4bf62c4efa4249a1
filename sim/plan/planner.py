"""The fewest replicas with which some setting meets its targets, and which settings do."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Setting = TypeVar("Setting")
Trial = TypeVar("Trial")


class Search(Generic[Setting, Trial]):
    """Tries settings with 1, 2, 4, ... replicas until one is good, then bisects down to the fewest.

    Taken for granted: what fails with some replicas fails with fewer. So each round tries only the settings
    that may still be among the cheapest, all of them at once.
    """

    def __init__(
        self,
        try_all: Callable[[Sequence[Setting], int], Iterable[Trial]],
        is_good: Callable[[Trial], bool],
        is_hopeless: Callable[[Trial], bool],
    ) -> None:
        self.try_all = try_all
        """Returns a trial for each setting, in that order, with so many replicas."""
        self.is_good = is_good
        self.is_hopeless = is_hopeless
        """Whether more replicas cannot help."""
        self.trials: list[Trial] = []

    def fewest(self, settings: Sequence[Setting], most: int) -> tuple[int, list[Trial]] | None:
        """Return the fewest replicas, at most ``most``, that some setting needs, and its good trials.

        None where no setting is good with ``most``.
        """
        too_few, replicas = 0, 1
        while settings:
            good, left = self._round(settings, replicas)
            if good:
                return self._bisect(good, too_few, replicas)
            if replicas == most:
                return None
            too_few, replicas, settings = replicas, min(2 * replicas, most), left
        return None

    def _bisect(
        self, good: list[tuple[Setting, Trial]], too_few: int, enough: int
    ) -> tuple[int, list[Trial]]:
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            better, _ = self._round([setting for setting, _ in good], middle)
            if better:
                good, enough = better, middle
            else:
                too_few = middle
        return enough, [trial for _, trial in good]

    def _round(
        self, settings: Sequence[Setting], replicas: int
    ) -> tuple[list[tuple[Setting, Trial]], list[Setting]]:
        """Return the good ones with their trials, and the settings that more replicas may help."""
        pairs = list(zip(settings, self.try_all(settings, replicas), strict=True))
        self.trials += [trial for _, trial in pairs]
        good = [(setting, trial) for setting, trial in pairs if self.is_good(trial)]
        return good, [setting for setting, trial in pairs if not self.is_hopeless(trial)]
