"""Every adapter equally popular: the hardest traffic for an adapter cache."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Uniform:
    """Uniform over all adapters."""

    def adapters(self, uniforms: NDArray[np.float64], num_adapters: int) -> NDArray[np.int64]:
        """Map uniforms in [0, 1) to adapter indices in [0, num_adapters)."""
        return (uniforms * num_adapters).astype(np.int64)
