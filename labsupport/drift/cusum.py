"""Cumulative sum (CUSUM): adds up how far each value is from the expected mean, and raises an alarm above a limit.

One value that is half a standard deviation too high proves nothing; forty of them do. The average run length of a
CUSUM, the number of values before an alarm, can be computed. So the limit can be chosen for an acceptable rate of false
alarms.
"""

import math
from functools import partial

import numpy as np

from labsupport.arguments import choice, number, shown
from labsupport.tabular import as_float

BEYOND = 1e12  # run lengths above this are lost in the rounding of the equation
MOST = 200.0  # standard deviations: the equation takes 6 points for each


class Cusum:
    """The standardised two-sided CUSUM of Page (1954, "Continuous inspection schemes", Biometrika 41).

    Values must be standardised: mean 0 and standard deviation 1 in a healthy period. `upper` adds up each value's
    excess above `k`, `lower` its excess below `-k`. Neither falls below 0. An alarm is raised if one of them exceeds
    `h`. The best `k` is half the shift that should be detected soon; `cusum_limit` gives the `h`. The update after an
    alarm starts again at 0. With `two_sided=False` only a rise counts. Raises ValueError for k below 0 and for h not
    above 0.

    >>> cusum = Cusum(k=0.5, h=5)
    >>> for number, value in enumerate([0.3, -0.8, 2.1, 1.7, 2.4, 1.9, 0.2]):
    ...     if cusum.update(value).drift_detected:
    ...         print(number, cusum.direction, round(cusum.upper, 1))
    5 up 6.1
    """

    def __init__(self, k: float = 0.5, h: float = 5.0, two_sided: bool = True) -> None:
        self.k, self.h, self.two_sided = _checked(k, h, two_sided)
        self.upper = self.lower = 0.0

    def update(self, x: float) -> "Cusum":
        """Add the next value. Raises ValueError if it is not a finite number, and then changes nothing."""
        x = finite(x)
        if self.drift_detected:
            self.upper = self.lower = 0.0
        self.upper = max(0.0, self.upper + x - self.k)
        self.lower = max(0.0, self.lower - x - self.k) if self.two_sided else 0.0
        return self

    @property
    def drift_detected(self) -> bool:
        """Return True if the last value raised the alarm."""
        return max(self.upper, self.lower) > self.h

    @property
    def direction(self) -> str | None:
        """Return the direction of the change, "up" or "down"; None without an alarm."""
        if not self.drift_detected:
            return None
        return "up" if self.upper > self.lower else "down"


def cusum_run_length(shift: float = 0.0, k: float = 0.5, h: float = 5.0, two_sided: bool = True) -> float:
    """Return the average run length: the mean number of values until a `Cusum` that starts at 0 raises an alarm.

    `shift` is the true mean, in standard deviations. At 0 the result is the time between false alarms, otherwise the
    mean delay. We solve Page's integral equation by Gaussian quadrature. The two sides are combined as by Kemp (1961,
    "The average run length of the cumulative sum chart when a V-mask is used", JRSS B 23). Results above 1e12 are
    returned as inf.

    The result holds for independent, normal values whose mean and deviation are known. At k=.5 and h=5 false alarms are
    465 values apart. Errors 0 and 1 of a good model are skewed, so false alarms come sooner (5 % errors: every 128).
    They also come sooner if values depend on each other. Mean and deviation are mostly estimated from a reference. With
    100 reference values the run length is less than 353 for half of all references, and less than 157 for one in ten;
    with 1,000, 450 and 346. Raises ValueError as `Cusum` does, and for h above 200.

    >>> [round(cusum_run_length(shift, k=0.5, h=5), 1) for shift in (0, 0.5, 1, 2)]
    [465.4, 38.0, 10.4, 4.0]
    """
    k, h, two_sided = _checked(k, h, two_sided)
    shift = number("shift", shift)
    if h > MOST:
        raise ValueError(f"h={h}: the run length is computed up to h={MOST:.0f}")
    alarms = 1 / _one_sided(shift, k, h) + (1 / _one_sided(-shift, k, h) if two_sided else 0.0)  # for one value
    return 1 / alarms if alarms > 1 / BEYOND else math.inf


def cusum_limit(k: float = 0.5, run_length: float = 10_000, two_sided: bool = True) -> float:
    """Return the limit h at which false alarms are `run_length` values apart on average. The inverse of `cusum_run_length`.

    The assumptions of `cusum_run_length` apply. Raises ValueError for a run length that no h gives, or above 1e9.

    >>> h = cusum_limit(k=0.5, run_length=10_000)
    >>> round(h, 2), round(cusum_run_length(0, 0.5, h))
    (8.05, 10000)
    """
    from scipy import optimize

    k, _, two_sided = _checked(k, 1.0, two_sided)
    run_length = number("run_length", run_length, 1, 1e9)
    length = partial(cusum_run_length, 0.0, k, two_sided=two_sided)
    least, most = 1e-6, 1.0
    while length(h=most) < run_length and most < MOST:
        most = min(2 * most, MOST)
    if (shortest := min(length(h=least), BEYOND)) >= run_length:
        raise ValueError(f"run_length={run_length:g}: with k={k:g} give one above {shortest:.3g}, or a smaller k")
    if (longest := length(h=most)) < run_length:
        raise ValueError(f"run_length={run_length:g}: with k={k:g} give one up to {longest:.3g}, or a larger k")
    return float(optimize.brentq(lambda h: math.log(min(length(h=h), BEYOND) / run_length), least, most, xtol=1e-9))


def finite(x: float) -> float:
    """Return a finite number of any kind, a bool too, as a float. Raises ValueError for everything else."""
    try:
        value = as_float(x)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{shown(x)} is no finite number: leave it out, and count how often that happens")
    return value


def _one_sided(shift: float, k: float, h: float) -> float:
    """Return the run length of one side, by Page's equation.

    The length from s is 1 + P(back to 0) length(0) + the integral over the sums between 0 and h.
    """
    from scipy import special

    shift = min(max(shift, -h - k - 40), h + k + 40)  # beyond these the answer is the same
    panels = math.ceil(h / 2)
    points, weights = np.polynomial.legendre.leggauss(12)
    sums = (np.arange(panels)[:, None] + (points + 1) / 2).ravel() * h / panels
    sums, weights = np.concatenate([[0.0], sums]), np.tile(weights, panels) * h / panels / 2
    step = sums[None, 1:] - sums[:, None] + k - shift  # the value, less its mean, that leads from one sum to another
    equation = np.eye(len(sums))
    equation[:, 0] -= special.ndtr(k - shift - sums)
    equation[:, 1:] -= weights * np.exp(-(step**2) / 2) / math.sqrt(2 * math.pi)
    try:
        length = np.linalg.solve(equation, np.ones(len(sums)))[0]
    except np.linalg.LinAlgError:  # no alarm, as far as floats go
        return math.inf
    return max(1.0, float(length)) if 0 < length < BEYOND else math.inf


def _checked(k: float, h: float, two_sided: bool) -> tuple[float, float, bool]:
    """Return k and h, in standard deviations, and `two_sided`. Raises ValueError that names an invalid one."""
    return number("k", k, 0), number("h", h, 0, ends=False), choice("two_sided", two_sided, (True, False))
