"""Run the commands about models: check the installation, install models, serve, detect, process a folder.

Each command imports what it needs when it runs, so that `labsupport check` can report a broken installation.
"""

import gc
import importlib.metadata
import itertools
import json
import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labsupport.cli.app import app, command, complain

if TYPE_CHECKING:
    import numpy as np

    from labsupport.detection import Detection

ModelName = Annotated[str, typer.Option(help="yolov3-tiny or yolov3")]
Confidence = Annotated[float, typer.Option(min=0, max=1, help="report objects above this, from 0 to 1")]
Precision = Annotated[
    str | None, typer.Option(help="f32, bf16 or int8 (yolov3-tiny only); unless given, what this CPU is best at")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"labsupport {importlib.metadata.version('labsupport')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="print the version, and exit")
    ] = False,
) -> None:
    """Say nothing, but for --version."""


@command
def check() -> None:
    """Say [OK] or [FAIL] for each dependency, weight file and folder, with the cure beside each failure."""
    from labsupport import checking

    good = []
    for result in checking.everything():
        typer.echo(result)
        good.append(result.ok)
    if failed := good.count(False):
        typer.echo(f"{failed} of {len(good)} checks failed")
        raise typer.Exit(1)


@command
def models(names: Annotated[list[str] | None, typer.Argument(help="models to bring; none: list them")] = None) -> None:
    """List the models, or install those that are named."""
    from labsupport import models

    for name in names or []:
        models.ensure(name)
    for name, model in models.MODELS.items():
        problems = models.missing(name)
        state = f"not installed: {'; '.join(problems)} (labsupport models {name})" if problems else "installed"
        typer.echo(f"{name:12} {model.about:42} {state}")
    typer.echo(f"kept in {models.folder()}")


@command
def serve(
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from outside: needs LAB_TOKEN")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="0 for any free port; by default LAB_PORT, or 8000")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes; one already keeps every core busy")] = 1,
    root_path: Annotated[str, typer.Option(help="the prefix that a proxy in front adds, such as /serve")] = "",
    keep_uploads: Annotated[bool, typer.Option(help="keep annotated pictures in images_uploaded")] = False,
    precision: Precision = None,
    log: Annotated[
        str | None,
        typer.Option(
            envvar="LAB_LOG",
            help="where predictions are written down; '' for nowhere. A URL with a password belongs into LAB_LOG: "
            "every user of this machine can read a command's options",
        ),
    ] = None,
    certfile: Annotated[Path | None, typer.Option(help="a certificate (PEM), to speak HTTPS; needs --keyfile")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="the private key of --certfile (PEM, not encrypted)")] = None,
) -> None:
    """Run the API until interrupted."""
    # NumPy's threads for matrices would spin at their start while everything else loads; the server's matrices are small
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # there is no garbage yet, and looking for it takes a twentieth of the start
    try:
        from labsupport import loopback, models, paths
        from labsupport.access import tls_files
        from labsupport.protection import security
        from labsupport.serving import running

        folder = paths.root_or_data()
        os.environ["LAB_ROOT"] = str(folder)  # for the workers, too
        log = f"sqlite:///{folder / 'predictions.db'}" if log is None else log
        options = {
            "host": host,
            "log": log,
            "precision": precision,
            "root_path": root_path,
            "keep_uploads": keep_uploads,
        }
        port = loopback.default_port() if port is None else port
        loopback.resolved(host, port)
        security.required_token(host)
        files = tls_files.checked(certfile, keyfile)
        models.ensure("yolov3-tiny")
        if workers > 1:  # a later worker that fails is started again without end, so this is checked before
            models.network("yolov3-tiny")
            for file in folder.glob("rollout-*.db"):
                from labsupport.rollout import journal

                journal.check(file)
    finally:
        gc.enable()
    running.run(options, port, workers, files)


Action = StrEnum("Action", "status shadow canary blue_green ramp switch promote pause resume rollback")


def _percent(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 100:  # not a number is neither
        raise typer.BadParameter("give a number above 0, up to 100")
    return value


def _weights(steps: str | None) -> list[float] | None:
    try:
        return None if steps is None else [float(weight) for weight in steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps={steps!r}: give weights in percent, as in 5,25,50,100") from None


@command
def rollout(
    action: Annotated[Action, typer.Argument(help="all but status need LAB_TOKEN")] = Action.status,
    version: Annotated[str | None, typer.Argument(help="the candidate, or what a rollback returns to")] = None,
    model: ModelName = "yolov3-tiny",
    percent: Annotated[
        float | None, typer.Option(callback=_percent, help="of requests for a canary, of pictures for shadow")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="the weights of a ramp, as in 5,25,50,100")] = None,
    reason: Annotated[str | None, typer.Option(help="a note for the journal; a ramp writes its own")] = None,
    url: Annotated[str | None, typer.Option(help="of the server; by default the one on LAB_PORT, or 8000")] = None,
    cacert: Annotated[Path | None, typer.Option(help="the authority of an https server, such as ca.pem")] = None,
) -> None:
    """Show which version of a model a running server answers with, or change it."""
    import requests

    from labsupport import arguments, loopback
    from labsupport.client import Client
    from labsupport.protection import security

    target = "to" if action is Action.rollback else "candidate"
    share = "weight" if action is Action.canary else "percent"
    options = {target: version, share: percent, "steps": _weights(steps), "reason": reason}
    options = {name: value for name, value in options.items() if value is not None}
    if action is Action.status and options:
        raise ValueError(f"status only looks: leave out {', '.join(map(str, options.values()))}")
    change = None if action is Action.status else {"action": action.value, **options}
    address = arguments.address("--url", f"http://127.0.0.1:{loopback.default_port()}" if url is None else url)
    try:
        status = Client(address, model, verify=cacert, token=security.token()).rollout(change)
    except requests.exceptions.SSLError:
        raise  # its message says what to do
    except requests.ConnectionError as error:
        raise OSError(f"no server answers at {address}: start one with labsupport serve, or give --url") from error
    for line in _rollout_lines(status):
        typer.echo(line)


def _rollout_lines(status: dict[str, Any]) -> list[str]:
    """Return a text with one line for each version that has a part in the rollout, and for what is wrong.

    >>> status = {"phase": "Healthy", "action": "start", "stable": "v1", "candidate": None, "mode": "stable", "share": 0}
    >>> _rollout_lines(status | {"paused": False, "time": 0, "reason": "", "figures": {}, "loadable": [], "trouble": ""})
    ['Healthy: start, at 1970-01-01 00:00:00 UTC', '  stable     v1  answers 100 %']
    """
    since = datetime.fromtimestamp(status["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    reason = f" ({status['reason']})" if status["reason"] else ""
    lines = [f"{status['phase']}: {status['action']}, at {since}{reason}"]
    shadow, share = status["mode"] == "shadow", status["share"]
    share = 0 if shadow and status["paused"] else share
    lines.append(f"  stable     {status['stable']}  answers {100 if shadow else 100 - share:g} %")
    if status["candidate"]:
        lines.append(f"  candidate  {status['candidate']}  {'sees' if shadow else 'answers'} {share:g} %")
    lines += [
        f"  {name} {value:.0f}" if value % 1 == 0 else f"  {name} {value:.4g}"
        for name, value in status["figures"].items()
    ]
    if others := [name for name in status["loadable"] if name not in (status["stable"], status["candidate"])]:
        lines.append(f"  versions   {', '.join(others)}")
    return [*lines, f"  trouble    {status['trouble']}"] if status["trouble"] else lines


@command
def detect(
    pictures: Annotated[list[Path], typer.Argument(help="JPEG or PNG files")],
    model: ModelName = "yolov3-tiny",
    confidence: Confidence = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="print a line of JSON for each picture")] = False,
    save: Annotated[Path | None, typer.Option(help="a folder for copies of the pictures with boxes drawn")] = None,
) -> None:
    """Print the objects in each picture: file, label, confidence, and the box as left,top,right,bottom.

    Files that cannot be read are reported, the others go on, and the exit status is 1.
    Example: labsupport detect images/fruits.jpg --confidence 0.2
    """
    from labsupport import images
    from labsupport.detection import Detector

    detector, failed = Detector.load(model), False
    for picture in pictures:
        name = typer.format_filename(picture)  # also where the name is no text
        try:
            image = images.read(picture)
            detections = detector.detect(image, confidence)
        except (images.UnsupportedImage, images.ImageTooLarge, OSError) as error:
            failed = True
            is_folder = os.path.isdir(picture)
            why = "this is a folder: labsupport batch looks at folders" if is_folder else str(error)
            complain(f"{name}: {getattr(error, 'strerror', None) or why}")
            continue
        if as_json:
            rows = [{"label": one.label, "confidence": one.confidence, "box": one.box._asdict()} for one in detections]
            typer.echo(json.dumps({"file": name, "detections": rows}))
        else:
            for one in detections:
                typer.echo(f"{name}\t{one.label}\t{one.confidence:.3f}\t{','.join(map(str, one.box))}")
            if not detections:
                complain(f"{name}: nothing found with a confidence above {confidence:g}")
        if save:
            try:
                _save(save, picture.stem, image, detections)
            except OSError as error:
                failed = True
                complain(f"{name}: its copy could not be stored in {save}: {error.strerror or error}")
    if failed:
        raise typer.Exit(1)


def _save(folder: Path, stem: str, image: "np.ndarray", detections: "list[Detection]") -> None:
    """Write the picture with its boxes, under a name that no file has: stem.jpg, stem_2.jpg and so on."""
    from labsupport import images, paths
    from labsupport.detection import draw_boxes

    names = itertools.chain([f"{stem}.jpg"], (f"{stem}_{number}.jpg" for number in itertools.count(2)))
    file = next(folder / name for name in names if not os.path.lexists(folder / name))
    with paths.whole(file) as partial:
        partial.write_bytes(images.encode(draw_boxes(image, detections)))


@command
def batch(
    folder: Annotated[Path, typer.Argument(help="a folder of pictures and videos, or one of these")],
    out: Annotated[Path, typer.Option(help="the table to write: .parquet or .csv")],
    model: ModelName = "yolov3-tiny",
    confidence: Confidence = 0.5,
    precision: Precision = None,
    every: Annotated[int, typer.Option(min=1, help="look at one in so many frames of a video")] = 1,
) -> None:
    """Detect objects in a whole folder, and write a table. After an interruption, the same command continues."""
    from labsupport.batch import predict_folder
    from labsupport.detection import Detector

    try:
        done = predict_folder(folder, out, Detector.load(model, precision=precision), confidence, every)
    except KeyboardInterrupt:
        complain("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    left_out = f", {len(done.left_out):,} files left out" if done.left_out else ""
    rows = f"{done.rows:,} rows, {done.errors:,} with an error, {done.resumed:,} from an earlier run{left_out}"
    typer.echo(f"{typer.format_filename(out)}: {rows}")
