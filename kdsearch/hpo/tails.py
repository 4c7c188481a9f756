"""The tails of Student's t distribution, for tests and intervals. Neither numpy nor scipy."""

from __future__ import annotations

import math


def student_tail(t: float, freedom: int) -> float:
    """Return the chance that Student's t exceeds `t` (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = math.sin(angle) * total
    return 0.5 - (0.5 * inside if not odd else (angle + inside) / math.pi)


def student_point(chance: float, freedom: int) -> float:
    """Return the t that is exceeded with a chance in (0, .5): by halving, to the last bits."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > chance:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > chance else (low, middle)
    return high
