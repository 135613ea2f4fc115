"""The cumulative sum (CUSUM): adds up how far a stream is from where it should be, and knows how often it cries wolf.

A single value half a deviation too high says nothing; forty of them do. The average run length, how many values come before
an alarm, is known for a CUSUM, so that its limit can be chosen for the false alarms that one can bear.
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

    Values come standardised: mean 0 and standard deviation 1 while all is well. `upper` adds up what each has above `k`,
    `lower` what each has below `-k`, neither falls under 0, and one above `h` is an alarm. Half the shift that one wants to
    see soon is the best `k`; `cusum_limit` gives the `h`. The update after an alarm starts again at 0. With
    `two_sided=False` only a rise counts. Raises ValueError for k below 0 and for h not above 0.

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
        """Take the next value in. Raises ValueError for one that is no finite number, and changes nothing then."""
        x = finite(x)
        if self.drift_detected:
            self.upper = self.lower = 0.0
        self.upper = max(0.0, self.upper + x - self.k)
        self.lower = max(0.0, self.lower - x - self.k) if self.two_sided else 0.0
        return self

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""
        return max(self.upper, self.lower) > self.h

    @property
    def direction(self) -> str | None:
        """Where the mean went, "up" or "down"; None without an alarm."""
        if not self.drift_detected:
            return None
        return "up" if self.upper > self.lower else "down"


def cusum_run_length(shift: float = 0.0, k: float = 0.5, h: float = 5.0, two_sided: bool = True) -> float:
    """The average run length: how many values a `Cusum` takes to its alarm, on average, from 0 on.

    `shift` is the true mean, in standard deviations. At 0 this is the time between false alarms, else the mean delay. We
    solve Page's integral equation by Gaussian quadrature; the two sides are put together as by Kemp (1961, "The average run
    length of the cumulative sum chart when a V-mask is used", JRSS B 23). Inf for anything above 1e12.

    It holds for independent, normal values whose mean and deviation are known, and says at k=.5 and h=5 that false alarms
    are 465 values apart. On the errors 0 and 1 of a good model, which are skewed, they come sooner (5 % errors: every
    128), and so they do on values that hang together. Mean and deviation are mostly estimated, from a reference that lies a
    little off: with 100 reference values it is less than 353 for half of all references and less than 157 for one in
    ten; with 1,000, 450 and 346. Raises ValueError as `Cusum` does, and for h above 200.

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
    """The limit h at which false alarms are `run_length` values apart on average: `cusum_run_length` the other way round.

    What is said there of its assumptions holds here. Raises ValueError for a run length that no h gives, or above 1e9.

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
    """Page's equation: the length from s is 1 + P(back to 0) length(0) + the integral of what may come between 0 and h."""
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
    """All of it, if it makes sense. Raises ValueError, which names what does not. k and h are in standard deviations."""
    return number("k", k, 0), number("h", h, 0, ends=False), choice("two_sided", two_sided, (True, False))
