"""Confidence intervals."""

import math
from collections.abc import Sequence

import torch


def wilson(right: int, total: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % by default."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], *, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean, from resamples that are the same every time."""
    found = torch.tensor(values, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    means = torch.stack(
        [found[torch.randint(len(found), (len(found),), generator=random)].mean() for _ in range(draws)]
    )
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
