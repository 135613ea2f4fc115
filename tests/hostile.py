"""Attack the lab's own server on loopback, and see whether it goes on answering everybody else.

    python tests/hostile.py               # 50 hostile uploads of each kind, kind by kind, then all kinds together
    python tests/hostile.py --each 5 png_rgba never_reading

The server is the real command in a process of its own, in a control group of 1 GiB if we may make one. While clients of
one kind attack, a visitor asks for /health and sends a small picture, again and again. We print how long the visitor waited,
what the visitor got, and how much memory the server held at most.
"""

import argparse
import asyncio
import contextlib
import http.client
import io
import itertools
import json
import multiprocessing
import os
import re
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from command import HOST, Server, serving, small_uploads

TOKEN = "0123456789abcdef0123456789abcdef"
LIMIT = 1 << 30  # bytes: mem_limit in compose.yaml
SIDE = 5_000  # pixels: 25 million of them are the most that is taken
FULL = 19_900_000  # bytes of a picture: a little less than the most that is taken
PATIENCE = 75  # seconds that an attacker waits for an answer
GROUPS = Path("/sys/fs/cgroup/memory")


@dataclass
class Attack:
    """What one client sends on one connection."""

    pieces: list[bytes]  # sent one after the other
    pause: float = 0  # seconds between two pieces
    reads: bool = True  # else it never reads a byte of the answer
    times: int = 1  # connections, one after the other


# pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, color: int, content: bytes, interlaced: int = 0, more: bytes = b""
) -> bytes:
    """`content` is what IDAT holds before compression; `more` is put before it."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    idat = chunk(b"IDAT", zlib.compress(content, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + idat + chunk(b"IEND", b"")


def interlaced() -> bytes:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(-(-(SIDE - x) // dx), -(-(SIDE - y) // dy)) for x, y, dx, dy in passes]
    return png(SIDE, SIDE, 8, 6, b"".join(bytes(rows * (1 + 4 * columns)) for columns, rows in sizes), 1)


def tiles(kind: str, **options) -> bytes:
    """25 million pixels of noise that repeats: a small file, or a large answer, as the format has it."""
    tile = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.tile(tile, (SIDE // 50, SIDE // 50, 1))).save(out, kind, **options)
    return out.getvalue()


def jpeg(size: tuple[int, int] = (64, 64), mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, "JPEG", **options)
    return out.getvalue()


def inserted(data: bytes, piece: bytes) -> bytes:
    """A JPEG with as many copies of a piece after its first two bytes as it may have bytes."""
    return data[:2] + piece * ((FULL - len(data)) // len(piece)) + data[2:]


def many_scans() -> bytes:
    """A progressive JPEG of 25 million pixels that says its last scan again, 80 times."""
    data = jpeg((SIDE, SIDE), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 80 + b"\xff\xd9"


PICTURES: dict[str, Callable[[], bytes]] = {
    "png_rgba": lambda: png(SIDE, SIDE, 8, 6, bytes(SIDE * (1 + 4 * SIDE))),
    "png_rgba_16_bits": lambda: png(SIDE, SIDE, 16, 6, bytes(SIDE * (1 + 8 * SIDE))),
    "png_interlaced": interlaced,
    "png_text_bomb": lambda: png(
        9, 9, 8, 2, bytes(9 * 28), 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) * 99
    ),
    "png_chunk_flood": lambda: png(9, 9, 8, 2, bytes(9 * 28), 0, chunk(b"tEXt", b"a\0b") * (FULL // 15)),
    "png_too_much_data": lambda: png(9, 9, 8, 2, bytes(2 * 10**9)),
    "png_noise": lambda: tiles("PNG"),
    "jpeg_segments": lambda: inserted(jpeg(), b"\xff\xe1\0\x12Exif\0\0" + b"x" * 10),
    "jpeg_fill_bytes": lambda: inserted(jpeg(), b"\xff" * 1000),
    "jpeg_scans": many_scans,
    "jpeg_large": lambda: tiles("JPEG", quality=75),
    "jpeg_cmyk_progressive": lambda: jpeg((SIDE, SIDE), "CMYK", progressive=True),
    "jpeg_without_pixels": lambda: (lambda data: data[: data.rindex(b"\xff\xda")])(jpeg((SIDE, SIDE))),
    "no_picture": lambda: bytes(range(256)) * (FULL // 256),
}


# requests


def request(line: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = [f"{line} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def form(content: bytes, path: str = "/predict", disposition: str = 'name="file"; filename="a"', **options) -> bytes:
    body = b"--b\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
    return request(f"POST {path}", body, "Content-Type: multipart/form-data; boundary=b", **options)


def keys(size: int) -> bytes:
    """A JSON object of so many bytes, with a great many keys."""
    names = (f'"{number:x}":0' for number in itertools.count())
    return b"{" + ",".join(itertools.islice(names, size // 9)).encode() + b"}"


def as_json(line: str, body: bytes, *headers: str) -> bytes:
    return request(line, body, "Content-Type: application/json", *headers)


BEARER, WRONG = f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN[::-1]}"
JSON = "Content-Type: application/json"
CHUNKED = f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: multipart/form-data; boundary=b\r\n".encode()
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n"
RANGES = "Range: bytes=" + ",".join(f"{start}-{start}" for start in range(0, 5000, 2))
DETECTIONS = json.dumps([{"prediction": {"detections": [{}] * 9_999}}] * 50).encode()
REQUESTS: dict[str, Callable[[], Attack]] = {
    "never_reading": lambda: Attack([form(tiles("PNG"))], reads=False),
    "never_reading_weights": lambda: Attack([request("GET /browser/yolov3-tiny.weights")], reads=False),
    "slow_body": lambda: Attack([form(bytes(FULL))[:1000], *([b"x" * 1000] * 60)], pause=1),
    "slow_small_body": lambda: Attack([form(bytes(90_000))[:1000], *([b"x" * 100] * 60)], pause=1),
    "full_bodies": lambda: Attack([form(bytes(FULL), "/count-cars")], times=3),
    "expects_and_waits": lambda: Attack([form(bytes(FULL))[:300].replace(b"Host", b"Expect: 100-continue\r\nHost", 1)]),
    "many_parts": lambda: Attack(
        [form(b"\r\n--b\r\nContent-Disposition: form-data; name=x\r\n\r\n" * 90_000)], times=3
    ),
    "huge_part_header": lambda: Attack([form(b"", disposition="name=file;" + "a=b;" * 2_000_000)]),
    "nested_parts": lambda: Attack([form(form(bytes(10**6)) * 9)]),
    "boundary_everywhere": lambda: Attack([form(b"\r\n--" * (FULL // 4))]),
    "chunks_of_a_byte": lambda: Attack([CHUNKED, *([b"1\r\nx\r\n" * 50_000] * 60)]),
    "endless_chunks": lambda: Attack([CHUNKED, *([b"10000\r\n" + bytes(65_536) + b"\r\n"] * 1000)]),
    "length_too_large": lambda: Attack([form(bytes(10**6), length=FULL)]),
    "length_too_small": lambda: Attack([form(bytes(10**6), length=900)], times=5),
    "length_of_400_mb": lambda: Attack([as_json("PUT /rollout", bytes(10**6))[:100], bytes(10**6)], times=3),
    "huge_query": lambda: Attack([request("GET /dashboard/data?" + "a=b&" * 3_900)], times=50),
    "huge_target": lambda: Attack([request("GET /" + "a" * 10**6)], times=20),
    "many_headers": lambda: Attack([request("GET /health", b"", *(["a: "] * 3_000))], times=50),
    "many_short_requests": lambda: Attack([request("GET /health") * 3_000], times=20),
    "deep_json": lambda: Attack([as_json("POST /feedback", b"[" * 15_900)], times=20),
    "many_keys": lambda: Attack([as_json("POST /feedback", keys(15_900))], times=20),
    "many_keys_20_mb": lambda: Attack([as_json("POST /feedback", keys(FULL))], times=3),
    "many_keys_with_token": lambda: Attack([as_json("POST /records", b"[" + keys(1_500_000) + b"]", BEARER)], times=3),
    "many_errors_with_token": lambda: Attack([as_json("POST /records", DETECTIONS, BEARER)], times=3),
    "feedback": lambda: Attack([as_json("POST /feedback", b'{"prediction_id": "a", "correct": true}')], times=200),
    "wrong_tokens": lambda: Attack([as_json("PUT /rollout", b"{}", WRONG)], times=100),
    "wrong_tokens_with_body": lambda: Attack([as_json("POST /records", bytes(2_000_000), WRONG)], times=20),
    "ranges": lambda: Attack([request("GET /browser/yolov3-tiny.weights", b"", RANGES)], times=5),
    "heads": lambda: Attack([request("HEAD /browser/yolov3-tiny.weights")], times=100),
    "upgrades": lambda: Attack([request("GET /", b"", "Connection: upgrade", "Upgrade: websocket")], times=100),
    "idle": lambda: Attack([b""], reads=True),
    "slow_head": lambda: Attack([b"GET /health HTTP/1.1\r\n", *([b"a: b\r\n"] * 60)], pause=1),
    "no_http": lambda: Attack([os.urandom(100_000)], times=50),
    "nonsense": lambda: Attack([request("POST /nonsense", bytes(FULL))], times=3),
}
KINDS = {**{name: (lambda make=make: Attack([form(make())])) for name, make in PICTURES.items()}, **REQUESTS}


# attackers, in a process of their own


async def _one(port: int, attack: Attack) -> str:
    """Attack once. Return the status of the answer, or what became of it."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port, limit=2**16)
    except OSError as error:
        return type(error).__name__
    answer = asyncio.ensure_future(reader.read(12)) if attack.reads else None
    try:
        for piece in attack.pieces:
            writer.write(piece)
            await writer.drain()
            if attack.pause:
                await asyncio.sleep(attack.pause)
            if reader.at_eof():
                break
        if not answer:
            writer.transport.pause_reading()
            await asyncio.sleep(PATIENCE)
            return "read nothing"
        status = (await answer)[9:].decode(errors="replace")
        while await reader.read(2**16):
            if attack.times > 1 or status == "200":
                break  # it has what it wanted; the others want to stay
        return status or "closed"
    except OSError as error:
        return type(error).__name__
    finally:
        if answer:
            answer.cancel()
        writer.transport.abort()


async def _many(port: int, attack: Attack, count: int) -> Counter:
    async def client() -> list[str]:
        results = []
        for _ in range(attack.times):
            try:
                results.append(await asyncio.wait_for(_one(port, attack), PATIENCE))
            except TimeoutError:
                results.append("never closed")
        return results

    return Counter(itertools.chain(*await asyncio.gather(*(client() for _ in range(count)))))


def attackers(port: int, name: str, count: int, ready, start, results) -> None:
    attack = KINDS[name]()
    ready.release()
    start.wait()
    results.put((name, asyncio.run(_many(port, attack, count))))


# the visitor


@dataclass
class Visit:
    """What a visitor saw: for each thing asked, the statuses that came and the seconds that each took."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"/health": [], "/predict": []})
    statuses: Counter = field(default_factory=Counter)
    memory: int = 0  # bytes that the server held at most

    def worst(self) -> float:
        return max(itertools.chain([0.0], *self.seconds.values()))


def resident(server: Server) -> int:
    """Bytes of memory that the server holds now."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def visit(server: Server, what: str, message: bytes, seen: Visit, stop: threading.Event) -> None:
    """Ask again and again, each time on a new connection, as somebody else would."""
    while not stop.wait(0.05):
        started, status = time.monotonic(), "none"
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
            connection.connect()
            connection.sock.sendall(message)
            answer = http.client.HTTPResponse(connection.sock)
            answer.begin()
            answer.read()
            status = answer.status
            connection.close()
        seen.seconds[what].append(time.monotonic() - started)
        seen.statuses[f"{what} {status}"] += 1


@contextlib.contextmanager
def visiting(server: Server) -> Iterator[Visit]:
    """A visitor who asks all the while; and somebody who watches the server's memory."""
    seen, stop = Visit(), threading.Event()
    messages = {"/health": request("GET /health"), "/predict": small_uploads("/predict")[0]}

    def watch() -> None:
        while not stop.wait(0.02) and server.process.poll() is None:
            seen.memory = max(seen.memory, resident(server))

    threads = [threading.Thread(target=watch)]
    threads += [
        threading.Thread(target=visit, args=(server, what, sent, seen, stop)) for what, sent in messages.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def attack(server: Server, names: list[str], each: int) -> tuple[Visit, dict[str, Counter]]:
    """Let `each` clients of each kind attack at once. Return what a visitor saw, and what became of the attacks."""
    context = multiprocessing.get_context("spawn")
    ready, start, results = context.Semaphore(0), context.Event(), context.Queue()
    processes = [
        context.Process(target=attackers, args=(server.port, name, each, ready, start, results)) for name in names
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=120), "the attackers did not get ready"
    with visiting(server) as seen:
        start.set()
        answers = dict(results.get(timeout=10 * PATIENCE) for _ in names)
    for process in processes:
        process.join()
    return seen, answers


# the server


@contextlib.contextmanager
def limited_server(folder: Path, *options: str) -> Iterator[tuple[Server, Path | None]]:
    """The command with 1 GiB of memory, and its control group. Without the right to make one it is only told so."""
    told = f"import labsupport.protection.memory as m, runpy; m.group_limits = lambda: iter([{LIMIT}]); "
    run = "runpy.run_module('labsupport', run_name='__main__')"
    command, group = [sys.executable, "-u", "-c", told + run, "serve", "--port", "0"], None
    with contextlib.suppress(OSError):
        own = re.search(r"^\d+:memory:(/.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        group = GROUPS / own[1].lstrip("/") / f"hostile-{os.getpid()}" if own else None
        if group:
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(LIMIT))
            enter = f"open('{group}/cgroup.procs', 'w').write('0'); import runpy; "
            command = [sys.executable, "-u", "-c", enter + run, "serve", "--port", "0"]
    try:
        with serving(folder, *options, command=command, LAB_TOKEN=TOKEN) as server:
            yield server, group if group and group.exists() else None
    finally:
        if group and group.exists():
            group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], metavar="kind", help=", ".join(KINDS))
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--alone", action="store_true", help="kind by kind only, not all together")
    chosen = parser.parse_args()
    names = chosen.kinds or list(KINDS)
    rounds = [[name] for name in names] + ([names] if len(names) > 1 and not chosen.alone else [])
    with tempfile.TemporaryDirectory() as folder, limited_server(Path(folder)) as (server, group):
        print(f"before: {resident(server) / 1e6:.0f} MB, control group: {group}")
        for names in rounds:
            started = time.monotonic()
            seen, answers = attack(server, names, chosen.each)
            label = names[0] if len(names) == 1 else f"all {len(names)} kinds"
            worst = {what: f"{max(times, default=0):.2f} s" for what, times in seen.seconds.items()}
            print(f"{label:24} {time.monotonic() - started:5.1f} s {seen.memory / 1e6:5.0f} MB, waited {worst}")
            print(
                f"{'':24} visitor {dict(seen.statuses)}; attackers {dict(sum(answers.values(), Counter()))}", flush=True
            )
            if server.process.poll() is not None:
                sys.exit(f"the server ended with {server.process.returncode}: {server.console.read_text()[-2000:]}")
        print(f"console: {server.console.stat().st_size / 1e6:.1f} MB")
        if group:
            peak = int((group / "memory.max_usage_in_bytes").read_text())
            print(f"the control group's peak: {peak / 1e6:.0f} MB, files and network buffers included")


if __name__ == "__main__":
    main()
