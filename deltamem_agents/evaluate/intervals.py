"""Confidence intervals."""

import math


def wilson(right: int, total: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % by default."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
