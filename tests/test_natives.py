"""Native code and Ctrl-C: what compiles networks leaves the main thread alone, and an interrupted kernel lives on."""

import os
import queue
import random
import signal
import subprocess
import sys
import threading

import jupyter_client
import pytest

from labsupport import background, models
from labsupport.models import runtimes
from test_lab import environment, wait_until

KERNELS = int(os.environ.get("LAB_KERNELS", "1"))  # by hand more: LAB_KERNELS=10


def run(code: str, **own: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | own)


# the thread that makes networks


def test_what_is_called_on_a_thread_returns_and_raises_in_its_caller():
    assert background.call(threading.current_thread, "a name").name == "a name"
    with pytest.raises(ZeroDivisionError):
        background.call(lambda: 1 / 0, "a name")
    with pytest.raises(SystemExit):
        background.call(lambda: sys.exit(3), "a name")


def test_a_block_ends_when_the_work_beside_it_has_ended():
    main, begun = threading.main_thread().ident, threading.Event()

    def work():
        assert begun.wait(10)
        wait = threading.Condition.wait.__code__
        wait_until(lambda: sys._current_frames()[main].f_code is wait, "the main thread waits")
        steps.append("work")
        return 7

    steps = []
    with background.beside(work, "a name") as outcome:
        begun.set()
        steps.append("block")
    assert steps == ["block", "work"] and outcome.result() == 7
    with pytest.raises(LookupError), background.beside(work, "a name"):
        raise LookupError
    assert steps == ["block", "work", "work"]
    with background.beside(lambda: 1 / 0, "a name") as outcome:
        pass
    with pytest.raises(ZeroDivisionError):
        outcome.result()


def test_an_interrupt_comes_when_the_work_is_over():
    """Two of them, because people press Ctrl-C again."""
    main, steps, usual = threading.main_thread().ident, [], signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        steps.append("interrupt")
        raise KeyboardInterrupt

    def waiting(before):
        """The main thread's frame, once it waits, and not where it waited before."""
        frame = sys._current_frames()[main]
        return frame if frame.f_code is threading.Condition.wait.__code__ and frame is not before else None

    def work():
        frame = None
        for number in (1, 2):
            frame = wait_until(lambda frame=frame: waiting(frame), "the main thread waits")
            signal.pthread_kill(main, signal.SIGINT)
            wait_until(lambda number=number: len(steps) == number, "the main thread takes the signal")
        steps.append("over")

    signal.signal(signal.SIGINT, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            background.call(work, "slow work")
    finally:
        signal.signal(signal.SIGINT, usual)
    assert steps == ["interrupt", "interrupt", "over"]


def test_networks_are_made_one_after_the_other():
    at_work, most = [], []

    def make():
        at_work.append(1)
        most.append(len(at_work))
        threading.Event().wait(0.01)
        at_work.pop()
        return lambda: None

    threads = [background.start(lambda: runtimes.made(make), f"caller {number}") for number in range(8)]
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_network_whose_first_answer_fails_is_an_error_and_the_next_one_is_made():
    with pytest.raises(ZeroDivisionError):
        runtimes.made(lambda: lambda: 1 / 0)
    assert runtimes.made(lambda: lambda: 7)() == 7


# the crash


def test_an_interrupt_after_two_detectors_are_gone_is_a_keyboard_interrupt():
    """The cell run twice, and Ctrl-C: OpenVINO had left the main thread a signal stack whose memory was gone."""
    done = run("""
import gc, signal
from labsupport.detection import Detector
detector = Detector.load(precision="f32"); detector = Detector.load(precision="f32")
del detector; gc.collect()
signal.raise_signal(signal.SIGINT)
""")
    assert done.returncode == -signal.SIGINT, (done.returncode, done.stderr[-2_000:])
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


SIGNAL_STACK = """
import ctypes

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def where():
    now = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return now.address, now.flags, now.size

before = where()
"""
KINDS = {
    "best_precision": "from labsupport.models import best_precision; made = best_precision()",
    "openvino": "from labsupport.detection import Detector; made = Detector.load(); made.detect(picture)",
    "openvino's embedder": "made = Detector.load(precision='f32'); made.embed(picture)",
    "opencv": "made = Detector.load(runtime='opencv'); made.detect(picture); made.embed(picture)",
    "litert": "made = Detector.load(runtime='litert'); made.detect(picture)",
    "onnx": "made = Detector.load(runtime='onnx'); made.detect(picture)",
    "inspector": "from labsupport.scenarios import Inspector; made = Inspector.load(); made.detect(picture)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack, through Linux's C library")
def test_whatever_makes_a_network_leaves_the_main_threads_signal_stack_alone():
    steps = [f"{make}\nassert where() == before, {kind!r}" for kind, make in KINDS.items()]
    done = run("\n".join([SIGNAL_STACK, "import numpy as np; picture = np.zeros((90, 90, 3), np.uint8)", *steps]))
    assert done.returncode == 0, done.stderr[-2_000:]


# a processor that is held to less than it has

LESS = {
    "OpenVINO to AVX2": ({"OV_CPU_MAX_ISA": "AVX2"}, "int8"),
    "oneDNN to AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "int8"),
    "both to AVX2": ({"OV_CPU_MAX_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "int8"),
    "oneDNN to AVX-512 without bf16": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "int8"),
    "both to SSE": ({"OV_CPU_MAX_ISA": "SSE42", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "f32"),
}


@pytest.mark.parametrize("held", LESS)
def test_the_precision_that_is_chosen_is_one_that_works(held):
    """Held to AVX2 the CPU has no bf16. OpenVINO alone would say that it has, and then fail."""
    settings, precision = LESS[held]
    done = run(
        """
from labsupport import images, paths
from labsupport.detection import Detector
detector = Detector.load()
found = detector.detect(images.decode((paths.IMAGES / "clock.png").read_bytes()))
print(detector.version, *[one.label for one in found])
""",
        **settings,
    )
    assert done.stdout == f"yolov3-tiny/openvino-{precision} clock\n", done.stderr[-2_000:]


# a kernel

FIRST_CELL = """
import gc
import numpy as np
from labsupport import images, paths
from labsupport.detection import Detector
from labsupport.scenarios import Inspector
from labsupport.models import best_precision
clock = images.decode((paths.IMAGES / "clock.png").read_bytes())
one = two = None
"""
CELLS = (
    'one = Detector.load(precision="f32"); one = Detector.load(precision="f32")',
    'two = Detector.load(precision="f32")',
    "one = two = None; gc.collect()",
    "one = two; two = None; gc.collect()",
    "one, two = two, one; one = None",
    "if one: one.detect(clock)",
    "if two: two.embed(clock)",
    "one = Inspector.load(); one.detect(clock)",
    'two = Detector.load(runtime="litert")',
    'one = Detector.load(runtime="opencv"); one.embed(clock)',
    "best_precision()",
)
LAST_CELL = "assert [found.label for found in Detector.load().detect(clock)] == ['clock']"


def execute(manager, client, cell: str, interrupt_after: float | None = None) -> dict:
    """The kernel's reply to a cell, which is interrupted after so many seconds if it still runs."""
    asked = client.execute(cell)
    if interrupt_after is not None:
        threading.Event().wait(interrupt_after)
        manager.interrupt_kernel()

    def reply():
        assert manager.is_alive(), f"the kernel died at: {cell}"
        try:
            message = client.get_shell_msg(timeout=0.5)
        except queue.Empty:
            return None
        return message["content"] if message["parent_header"]["msg_id"] == asked else None

    return wait_until(reply, f"the reply to: {cell}", 120)


@pytest.mark.parametrize("seed", range(KERNELS))
def test_a_kernel_outlives_its_detectors_and_every_interrupt(seed):
    models.network("yolov3-tiny", "litert")  # else an interrupt could fall into its conversion, which takes long
    chance = random.Random(seed)
    env = environment(PYTHONWARNINGS="ignore")
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", env=env)
    try:
        assert execute(manager, client, FIRST_CELL)["status"] == "ok"
        for cell in [*CELLS[:1], *chance.choices(CELLS, k=12), CELLS[2]]:
            reply = execute(manager, client, cell, chance.choice((None, chance.uniform(0, 0.8))))
            interrupted = reply["status"] == "aborted" or reply.get("ename") == "KeyboardInterrupt"
            assert reply["status"] == "ok" or interrupted, (cell, reply)
        execute(manager, client, "import time; time.sleep(60)", interrupt_after=0.3)  # what killed it
        last = execute(manager, client, LAST_CELL)
        if last["status"] == "aborted":  # a kernel aborts what arrives right after an error, also the next cell
            last = execute(manager, client, LAST_CELL)
        assert last["status"] == "ok", last
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
