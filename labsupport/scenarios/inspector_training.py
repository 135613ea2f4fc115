"""Train the networks that find scratches, on simulated pictures whose truth is known.

The four of `RECIPES` come with the package, trained by `ship`. `networks` trains others at first use and keeps them as
OpenVINO files, in a separate process, because TensorFlow is slow to import and large. The network is fully convolutional
(Long, Shelhamer and Darrell, 2015): it
learns on pieces of pictures, and its answer is a grid of 16 x 16 cells of 8 x 8 pixels. So it gives the position of a
scratch. Its confidence is calibrated on pictures that were not used for training (Platt, 1999).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from labsupport import paths
from labsupport.models import ModelUnavailable, kept
from labsupport.scenarios import phones

if TYPE_CHECKING:
    import keras

CELL, PIECE = 8, 64  # pixels: what one answer is about, and the side of the square pieces that are learned from
BATCH, EPOCH = 32, "epoch done\n"
SCRATCHED = 0.6  # share of the pictures that are learned from; on the line it is half of that
CALIBRATION = 600  # pictures, as they come on the line
SHIPPED, MADE_BY = Path(__file__).with_name("networks"), "recipes.json"


@dataclass(frozen=True)
class Recipe:
    """The settings with which a network is trained."""

    pictures: int
    epochs: int
    filters: int  # in the first layer; later ones have two and three times as many
    lighting: float = 1.0  # of the pictures that are learned from
    seed: int = 1_000_000  # far from the seeds that anybody tests with


RECIPES = {
    "stable": Recipe(pictures=1200, epochs=8, filters=8),
    "better": Recipe(pictures=2400, epochs=10, filters=8),
    "worse": Recipe(pictures=800, epochs=8, filters=8, lighting=1.8),
    "evening": Recipe(pictures=1200, epochs=8, filters=8, lighting=0.6),
}


def networks(recipes: Mapping[str, Recipe] = RECIPES, progress: bool = True) -> Path:
    """Return the folder with a network `<name>.xml` for each recipe.

    Those of `RECIPES` come with the package. Others are trained the first time, and kept in the cache.

    The same recipe gives the same network on one machine, and one that differs in the last digits on another. Raises
    `ModelUnavailable` if TensorFlow is not installed, or the result cannot be stored.
    """
    asked = _text(recipes)
    if (SHIPPED / MADE_BY).is_file() and (SHIPPED / MADE_BY).read_text(encoding="utf-8") == asked:
        return SHIPPED
    sources = b"".join(Path(module).read_bytes() for module in (__file__, phones.__file__))
    name = f"scratches-{hashlib.sha256(sources + asked.encode()).hexdigest()[:16]}"
    try:
        return kept.folder(name, lambda folder: _train_all(recipes, folder, progress))
    except OSError as error:
        raise ModelUnavailable(f"networks {error}") from error


def ship() -> None:
    """Train the networks of `RECIPES` and put them into the package. Call this after a change of recipes or drawing."""
    with paths.whole(SHIPPED) as partial:
        partial.mkdir()
        _train_all(RECIPES, partial, progress=True)
        (partial / MADE_BY).write_text(_text(RECIPES), encoding="utf-8")
        shutil.rmtree(SHIPPED, ignore_errors=True)


def _text(recipes: Mapping[str, Recipe]) -> str:
    return json.dumps({name: asdict(recipe) for name, recipe in recipes.items()}, sort_keys=True)


def _train_all(recipes: Mapping[str, Recipe], folder: Path, progress: bool) -> None:
    """Train each network in its own process, in parallel, one core each. TensorFlow is loaded only there."""
    epochs = sum(recipe.epochs for recipe in recipes.values())
    workers = []
    try:
        for name, recipe in recipes.items():
            command = [
                sys.executable,
                "-c",
                "from labsupport.scenarios import inspector_training; inspector_training.main()",
                json.dumps(asdict(recipe)),
                str(folder / f"{name}.xml"),
            ]
            workers.append(subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace"))
        with tqdm(desc=f"training {', '.join(recipes)}", total=epochs, unit="epoch", disable=not progress) as bar:
            for worker in workers:
                _follow(worker, bar)
    finally:
        for worker in workers:
            worker.kill()  # in vain, but for an error or an impatient person
            worker.communicate()


def _follow(worker: subprocess.Popen[str], bar: tqdm) -> None:
    """Advance the bar for each EPOCH that a worker prints. Raises `ModelUnavailable` with the worker's output if it
    fails.
    """
    assert worker.stdout is not None  # a pipe
    words = "no reason given"
    for line in worker.stdout:
        if line == EPOCH:
            bar.update()
        else:
            words = line.strip() or words
    if worker.wait():
        raise ModelUnavailable(f"no inspector could be trained: {words}")


def train(recipe: Recipe, file: Path) -> None:
    """Train a network and write it to `file`, an `.xml` with a `.bin` beside it.

    Input: (1, 128, 128, 1), float32, as `contrast` returns it. Output: (1, 16, 16, 1), for each cell the confidence, 0
    to 1, that it contains a scratch.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(recipe.seed)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    world = phones.inspection(recipe.pictures, recipe.seed, lighting=recipe.lighting, scratch_share=SCRATCHED)
    seen, truth, network = contrast(world.images), cells(world), _untrained(recipe)
    random = np.random.default_rng(recipe.seed)
    for _ in range(recipe.epochs):
        network.fit(*_pieces(seen, truth, random), batch_size=BATCH, verbose=0)
        print(EPOCH, end="", flush=True)
    fresh = phones.inspection(CALIBRATION, recipe.seed + 1, lighting=recipe.lighting)
    surest = network.predict(contrast(fresh.images), verbose=0).max(axis=(1, 2, 3))
    logits = keras.layers.Rescaling(*calibrate(surest, fresh.truth))
    given = keras.Input((phones.SIZE, phones.SIZE, 1), batch_size=1)
    _write(keras.Model(given, keras.ops.sigmoid(logits(network(given)))), file)


def contrast(pictures: np.ndarray) -> np.ndarray:
    """Return the network's input: each pixel minus the mean of the 9 x 9 pixels around it, in steps of 16 gray levels.

    Pictures of uint8, (N, H, W, 3), become float32, (N, H, W, 1).

    >>> contrast(np.full((2, 128, 128, 3), 200, np.uint8)).any()
    np.False_
    """
    seen = np.empty((*pictures.shape[:3], 1), np.float32)
    for picture, result in zip(pictures, seen, strict=True):
        gray = cv2.transform(picture.astype(np.float32), np.full((1, 3), 1 / 3))
        result[..., 0] = (gray - cv2.blur(gray, (9, 9))) / 16
    return seen


def _untrained(recipe: Recipe) -> "keras.Model":
    """Return the network before training: five convolutions that end in one logit for each cell."""
    import keras

    x = start = keras.Input((None, None, 1))
    for times, size, stride in ((1, 5, 2), (2, 3, 2), (3, 3, 2), (3, 3, 1), (3, 3, 1)):
        x = keras.layers.Conv2D(times * recipe.filters, size, stride, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    rare = keras.initializers.Constant(-3)  # most cells have no scratch
    network = keras.Model(start, keras.layers.Conv2D(1, 1, bias_initializer=rare)(x))
    steps = recipe.epochs * -(-recipe.pictures // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, steps))
    network.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    return network


def cells(world: phones.Inspection) -> np.ndarray:
    """Return the truth for each cell of each picture, (N, 16, 16, 1): 1.0 if a scratch runs through it, otherwise 0.0.

    >>> world = phones.inspection(20, seed=1)
    >>> truth = cells(world)
    >>> truth.shape, bool((truth.max(axis=(1, 2, 3)) == world.truth).all())
    ((20, 16, 16, 1), True)
    """
    side = phones.SIZE // CELL
    truth = np.zeros((len(world.images), side, side, 1), np.float32)
    for picture, scratches in enumerate(world.scratches):
        drawn = np.zeros((phones.SIZE, phones.SIZE), np.uint8)
        cv2.polylines(drawn, [np.rint(scratch.line).astype(np.int32) for scratch in scratches], False, 1)
        truth[picture, ..., 0] = drawn.reshape(side, CELL, side, CELL).max(axis=(1, 3))
    return truth


def _pieces(seen: np.ndarray, truth: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a random square of each picture, on a scratch if there is one, flipped at random, and its truth.

    Scratches are rarer in whole pictures than in pieces, and a piece costs a quarter of a picture.
    """
    side, last = PIECE // CELL, truth.shape[1] - PIECE // CELL
    squares, answers = [], []
    for picture, answer in zip(seen, truth, strict=True):
        spots = np.argwhere(answer[..., 0])
        corner = random.integers(last + 1, size=2)
        if len(spots):
            corner = (random.choice(spots) - random.integers(side, size=2)).clip(0, last)
        (top, left), turn = corner.tolist(), np.s_[:: random.choice([-1, 1]), :: random.choice([-1, 1])]
        squares.append(picture[CELL * top :, CELL * left :][:PIECE, :PIECE][turn])
        answers.append(answer[top:, left:][:side, :side][turn])
    return np.array(squares), np.array(answers)


def calibrate(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the slope and offset that turn logits into probabilities, sigmoid(slope * logit + offset), fitted to this
    truth.

    This is Platt's scaling (1999): logistic regression on one number, with targets slightly away from 0 and 1.

    >>> random = np.random.default_rng(0)
    >>> truth = random.random(4000) < 0.3
    >>> slope, offset = calibrate(random.normal(np.where(truth, 1, -1)), truth)  # true: 2 and log(0.3 / 0.7) = -0.85
    >>> round(slope, 1), round(offset, 1)
    (1.9, -0.9)
    """
    yes, no = truth.sum(), (~truth).sum()
    target = np.where(truth, (yes + 1) / (yes + 2), 1 / (no + 2))
    x = np.stack([logits, np.ones(len(logits))], axis=1).astype(np.float64)
    weights = np.zeros(2)
    for _ in range(30):  # Newton's method; the small ridge keeps each step within reason
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x.T * (p * (1 - p))) @ x + 0.1 * np.eye(2), x.T @ (target - p))
    return float(weights[0]), float(weights[1])


def _write(network: "keras.Model", file: Path) -> None:
    import openvino as ov

    with tempfile.TemporaryDirectory() as saved:
        network.export(saved, format="tf_saved_model", verbose=False)
        model = ov.convert_model(saved)
    ov.save_model(model, file, compress_to_fp16=False)


def main() -> None:
    """Train the network that the command line names: RECIPE FILE, the recipe as JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    train(Recipe(**json.loads(sys.argv[1])), Path(sys.argv[2]))
