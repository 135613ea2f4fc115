"""What a t3.large costs a month, and what it holds: list prices, and figures from our own bench.

`python -m deploy.aws.costs` prints the tables of deploy/aws/README.md. The trap is in the name: a t3 is burstable. It has
two vCPUs, the hyper-threads of one core, and of each it may use 30 % for good. What it uses beyond that it must have saved
up as CPU credits (one is a vCPU for a minute), or it pays for them.
"""

import re
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"

# list prices in dollars, us-east-1, Linux, on demand, as published in 2025: check them before you rely on them
HOUR = 0.0832  # a t3.large
SURPLUS = 0.05  # a vCPU-hour above the baseline, in unlimited mode
ADDRESS = 0.005  # a public IPv4 address, an hour
DISK = 0.08  # a GB of gp3, a month
BALANCER = 0.0225  # an application load balancer, an hour, without its capacity units
OUT = 0.09  # a GB to the internet, after the first 100 a month

HOURS, DAY = 730, 86_400  # hours in a month, seconds in a day
GIGABYTES = 20  # of disk
VCPUS, BASELINE = 2, 0.30
EARNED, SAVED = 36, 864  # credits: an hour's worth, and the most that can be saved


def rate(results: str, cores: int = 1) -> float:
    """Return the pictures a second that `cores` busy cores answer in f32. `results` is the text of RESULTS.md.

    The row of eight clients was measured with two busy cores, so one core gets half of it. The two vCPUs of a t3 share one
    core. A t3 would take int8, whose speed there we have not measured. Raises ValueError if the row is missing.

    >>> rate("| labsupport serve, f32 | 8 | 38.8 | 204 |")
    19.4
    """
    found = re.search(r"^\| labsupport serve, f32 \| 8 \| ([\d.]+) \|", results, re.MULTILINE)
    if not found:
        raise ValueError("no row of labsupport serve, f32 with 8 clients: run make bench")
    return float(found[1]) * cores / 2


def month(balanced: bool = False, busy: float = 0.0) -> float:
    """Dollars a month of one environment whose vCPUs are `busy` on average, 0 to 1, in unlimited mode.

    >>> round(month(), 2), round(month(balanced=True), 2), round(month(busy=1), 2)
    (65.99, 89.71, 117.09)
    """
    fixed = (HOUR + ADDRESS) * HOURS + DISK * GIGABYTES
    balancer = (BALANCER + 2 * ADDRESS) * HOURS if balanced else 0  # in two zones, with an address in each
    return fixed + balancer + VCPUS * max(0, busy - BASELINE) * SURPLUS * HOURS


def burst() -> float:
    """Hours of full speed in standard mode, from all the credits that can be saved.

    >>> round(burst(), 1)
    10.3
    """
    return SAVED / (VCPUS * 60 - EARNED)


def tables(results: str) -> str:
    """Both tables, as they stand in the README."""
    full, two_cores = rate(results), rate(results, cores=2)
    lines = [
        "| what is paid for | $ a month |",
        "|---|---|",
        f"| t3.large, {HOUR} $ an hour | {HOUR * HOURS:.2f} |",
        f"| {GIGABYTES} GB of disk (gp3) | {DISK * GIGABYTES:.2f} |",
        f"| a public IPv4 address | {ADDRESS * HOURS:.2f} |",
        f"| **one environment** | **{month():.2f}** |",
        f"| the same behind an application load balancer | {month(balanced=True):.2f} |",
        f"| busy around the clock, in unlimited mode | {month(busy=1):.2f} |",
        "",
        "| sustained, f32 | pictures/s | pictures a day | $ a month | $ a million pictures |",
        "|---|---|---|---|---|",
        _row("what the credits allow for good (30 %)", BASELINE * full, month(busy=BASELINE)),
        _row("all of it, in unlimited mode", full, month(busy=1)),
        f"| two whole cores, as measured here, for comparison | {two_cores:.1f} | {two_cores * DAY:,.0f} | | |",
    ]
    return "\n".join(lines)


def _row(name: str, pictures: float, dollars: float) -> str:
    million = dollars / (pictures * HOURS * 3600) * 1e6
    return f"| {name} | {pictures:.1f} | {pictures * DAY:,.0f} | {dollars:.2f} | {million:.2f} |"


if __name__ == "__main__":
    print(tables(RESULTS.read_text()))
