"""Student's t, by which intervals of few values are wider than those of many."""

from statistics import NormalDist

NORMAL = NormalDist()


def student_t(degrees: int, confidence: float = 0.95) -> float:
    """The upper quantile of Student's t for a two-sided `confidence`: Abramowitz and Stegun 1964, 26.7.5, an expansion
    around the normal quantile. For 0.95 it is off by 11% at 1 degree of freedom, 0.8% at 2 and 0.001% at 8.
    """
    z = NORMAL.inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
