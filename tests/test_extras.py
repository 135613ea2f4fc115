"""An installation without the extras: each library that is missing is one line that names what to install."""

import subprocess
import sys

import pytest

from labsupport.extras import imported

LIBRARIES = (
    "IPython",
    "ai_edge_litert",
    "boto3",
    "keras",
    "matplotlib",
    "pandas",
    "psutil",
    "psycopg",
    "pyarrow",
    "ray",
)
LIBRARIES += ("river", "scipy", "sklearn", "tensorflow")
BARE = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LIBRARIES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
LOG = "from tempfile import mkdtemp; from labsupport.log import PredictionLog; "


def run(program: str) -> subprocess.CompletedProcess:
    """Run a program where only what the server needs is installed."""
    return subprocess.run([sys.executable, "-W", "error", "-c", BARE + program], capture_output=True, text=True)


def test_a_library_that_lacks_a_library_of_its_own_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_here.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_library'$"):
        imported("half_here")
    with pytest.raises(ImportError, match=r"^no_such_library is not installed: pip install 'labsupport\[lab\]'$"):
        imported("no_such_library.part")


@pytest.mark.parametrize(
    ("line", "library", "extra"),
    [
        ("import labsupport.drift", "scipy", "lab"),
        ("import labsupport.pipeline", "scipy", "lab"),
        ("import labsupport.scenarios", "scipy", "lab"),
        (LOG + "PredictionLog(f'sqlite:///{mkdtemp()}/log.db').frame()", "pandas", "lab"),
        (LOG + "PredictionLog(f'sqlite:///{mkdtemp()}/log.db').pairs()", "pandas", "lab"),
        (LOG + "PredictionLog(f'sqlite:///{mkdtemp()}/log.db').export('/tmp/never.parquet')", "pyarrow", "lab"),
        ("from labsupport.rollout import Retraining", "scipy", "lab"),
        (
            "import numpy; from labsupport import images; images.show(numpy.zeros((2, 2, 3), 'uint8'), 'a')",
            "IPython",
            "lab",
        ),
        ("from labsupport import charts; charts.new_figure(1, 1)", "matplotlib", "lab"),
        (
            "from labsupport.automation import choose_thresholds as c; c([0, 1] * 99, [0.1, 0.9] * 99, 0.5)",
            "scipy",
            "lab",
        ),
        ("from labsupport.detection import Detector; Detector.load(runtime='litert')", "LiteRT", "edge"),
        ("from labsupport import scale; scale.deploy('yolov3-tiny/openvino-f32')", "Ray", "scale"),
        (LOG + "PredictionLog('postgresql://h/d')", "psycopg", "scale"),
    ],
)
def test_what_is_missing_is_the_last_line_and_names_the_extra(line, library, extra):
    done = run(line)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and library in last and f"pip install 'labsupport[{extra}]'" in last


def test_what_the_server_needs_works_without_the_extras(tmp_path):
    """Faces, the command, and a prediction; the weights are installed, and the network is made anew."""
    faces = (
        "client cli checking images models detection log rollout monitoring automation protection serving edge batch"
    )
    program = "\n".join(f"import labsupport.{name}" for name in faces.split())
    program += f"""
import os
os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r}
from labsupport import images, paths
from labsupport.detection import Detector
print(Detector.load(precision="f32").detect(images.read(paths.IMAGES / "clock.png"))[0].label)
"""
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "clock\n"), done.stderr
