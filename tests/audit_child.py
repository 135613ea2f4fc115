"""Write an audit trail in processes that are killed. test_audit.py runs it; it imports little, so that it starts quickly.

`python audit_child.py kills FOLDER COUNT SEED` starts a process that appends entries, kills it at a random moment, and does
this COUNT times. It prints one JSON line for each: the verdict (each fourth time), the number of entries whose writing was
reported, and the names of those that are missing.
`python audit_child.py together FOLDER COUNT WRITERS` starts processes that append at the same time.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from labsupport.access.audit import AuditTrail, Entry
from labsupport.access.chain import ChainBroken, Keeper


def trail_in(folder: str) -> AuditTrail:
    return AuditTrail(Path(folder, "audit.db"), Path(folder, "keys"))


def entry(name: str) -> Entry:
    return Entry(time.time(), None, None, "127.0.0.1", "POST /predict", name, "200")


def forked(work, *arguments) -> tuple[int, int]:
    """Run `work(pipe, *arguments)` in a process, and return its id and the other end of the pipe."""
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        return process, reading
    try:
        os.close(reading)
        work(writing, *arguments)
    finally:
        os._exit(1)


def append_for_ever(pipe: int, folder: str, life: int) -> None:
    trail, number = trail_in(folder), 0
    while True:
        names = [f"{life}-{number + more}" for more in range(number % 3 + 1)]
        trail.append(map(entry, names))
        os.write(pipe, (" ".join(names) + " ").encode())
        number += len(names)


def write_for_ever(pipe: int, folder: str, life: int) -> None:
    trail = trail_in(folder)

    async def one(writer: int) -> None:
        number = 0
        while True:
            name = f"{life}-{writer}-{number}"
            await trail.write(entry(name))
            os.write(pipe, f"{name} ".encode())
            number += 1

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(4)))

    asyncio.run(all_of_them())


def kills(folder: str, count: str, seed: str) -> None:
    chance = random.Random(int(seed))
    for life in range(int(count)):
        began = time.time()
        process, pipe = forked((append_for_ever, write_for_ever)[life % 2], folder, life)
        reported = b""
        for _ in range(chance.randrange(4)):
            reported += os.read(pipe, 1 << 16)
        time.sleep(chance.uniform(0, 0.003))  # any moment of the next write, not only the one after a report
        os.kill(process, signal.SIGKILL)
        while more := os.read(pipe, 1 << 16):  # until nobody can write to it any more
            reported += more
        os.close(pipe)
        os.waitpid(process, 0)
        names = set(reported.decode().split())  # each report is one small write, so none is cut
        trail = trail_in(folder)
        kept = {written.object for _, written in trail.entries(since=began)}
        verdict = trail.verify() if life % 4 == 3 else None  # all rows are read each time
        print(json.dumps([verdict and [verdict.intact, verdict.rows], len(names), sorted(names - kept)]), flush=True)


def append_some(pipe: int, folder: str, count: int, name: str, gate: int) -> None:
    os.read(gate, 1)  # all begin when the gate is closed
    trail = trail_in(folder)
    for number in range(count):
        trail.append([entry(f"{name}-{number}")] * (number % 3 + 1))
    trail.close()
    os.write(pipe, b"done")


def together(folder: str, count: str, writers: str) -> None:
    gate, opened = os.pipe()

    def begin(pipe: int, name: str) -> None:
        os.close(opened)
        append_some(pipe, folder, int(count), name, gate)

    started = [forked(begin, str(writer)) for writer in range(int(writers))]
    os.close(opened)
    numbers, running, keeper = [], len(started), Keeper(Path(folder, "keys"))
    while running:
        finished, _ = os.waitpid(-1, os.WNOHANG)
        running -= finished != 0
        with contextlib.suppress(ChainBroken):  # not made yet, or read in the middle of a write
            numbers.append(keeper.anchored(keeper.key()).number)
        time.sleep(0.0005)
    reports = [os.read(pipe, 100) == b"done" for _, pipe in started]
    print(json.dumps([all(reports), numbers]))


if __name__ == "__main__":
    {"kills": kills, "together": together}[sys.argv[1]](*sys.argv[2:])
