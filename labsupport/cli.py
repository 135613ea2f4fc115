"""The `labsupport` command: is everything here, bring the models, serve, detect, look at a folder.

Each command imports what it needs when it runs, so that `labsupport check` can report a broken installation.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main() -> None:
    """The deployment lab's commands."""


@app.command()
def check() -> None:
    """Say [OK] or [FAIL] for each dependency, weight file and folder, with the cure beside each failure."""
    from labsupport import checking

    results = checking.everything()
    for result in results:
        typer.echo(result)
    if failed := sum(not result.ok for result in results):
        typer.echo(f"{failed} of {len(results)} checks failed")
        raise typer.Exit(1)


@app.command()
def models(names: Annotated[list[str] | None, typer.Argument(help="models to bring; none: list them")] = None) -> None:
    """List the models, or bring those that are named."""
    from labsupport import models

    try:
        for name in names or []:
            models.ensure(name)
    except models.ModelUnavailable as error:
        raise _stop(error) from None
    for name, model in models.MODELS.items():
        problems = models.missing(name)
        state = f"not installed: {'; '.join(problems)} (labsupport models {name})" if problems else "installed"
        typer.echo(f"{name:12} {model.about:42} {state}")
    typer.echo(f"kept in {models.folder()}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from outside: needs LAB_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any free port")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="processes; one already keeps every core busy")] = 1,
    root_path: Annotated[str, typer.Option(help="the prefix that a proxy in front adds, such as /serve")] = "",
    keep_uploads: Annotated[bool, typer.Option(help="keep annotated pictures in images_uploaded")] = False,
    precision: Annotated[str | None, typer.Option(help="f32 or bf16; unless given, what this CPU is best at")] = None,
    log: Annotated[str | None, typer.Option(help="where predictions are written down; '' for nowhere")] = None,
) -> None:
    """Run the API until interrupted."""
    from labsupport import models, monitoring, paths, running, security

    log = f"sqlite:///{paths.root() / 'predictions.db'}" if log is None else log
    options = {"host": host, "log": log, "precision": precision, "root_path": root_path, "keep_uploads": keep_uploads}
    try:
        security.required_token(host)
        models.ensure("yolov3-tiny")
        models.network("yolov3-tiny")  # once, before several workers ask for it
        running.run(options, port, workers)
    except (
        models.ModelUnavailable,
        monitoring.LogUnavailable,
        monitoring.UnknownSchema,
        running.PortTaken,
        security.TokenMissing,
        ValueError,  # a precision or a log's address that there is not
    ) as error:
        raise _stop(error) from None


@app.command()
def detect(
    pictures: Annotated[list[Path], typer.Argument(help="JPEG or PNG files")],
    model: str = "yolov3-tiny",
    confidence: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
) -> None:
    """Print what is in each picture."""
    from labsupport import images, models
    from labsupport.detection import Detector

    try:
        detector = Detector.load(model)
        for picture in pictures:
            for found in detector.detect(images.decode(picture.read_bytes()), confidence):
                typer.echo(f"{picture}\t{found.label}\t{found.confidence:.3f}\t{','.join(map(str, found.box))}")
    except (models.ModelUnavailable, images.UnsupportedImage, images.ImageTooLarge, OSError) as error:
        raise _stop(error) from None


@app.command()
def batch(
    folder: Annotated[Path, typer.Argument(help="a folder of pictures and videos, or one of these")],
    out: Annotated[Path, typer.Option(help="the table to write: .parquet or .csv")],
    model: str = "yolov3-tiny",
    confidence: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    precision: Annotated[str | None, typer.Option(help="f32 or bf16; unless given, what this CPU is best at")] = None,
    every: Annotated[int, typer.Option(min=1, help="look at one in so many frames of a video")] = 1,
) -> None:
    """Look at a whole folder, and write what is in it into a table. Stopped, the same command goes on where it was."""
    from labsupport import models
    from labsupport.batch import BatchRunning, predict_folder
    from labsupport.detection import Detector

    try:
        done = predict_folder(folder, out, Detector.load(model, precision=precision), confidence, every)
    except (models.ModelUnavailable, BatchRunning, OSError, ValueError) as error:
        raise _stop(error) from None
    except KeyboardInterrupt:
        typer.echo("labsupport: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    left_out = f", {len(done.left_out):,} files left out" if done.left_out else ""
    typer.echo(
        f"{out}: {done.rows:,} rows, {done.errors:,} with an error, {done.resumed:,} from an earlier run{left_out}"
    )


def _stop(error: Exception) -> typer.Exit:
    typer.echo(f"labsupport: {error}", err=True)
    return typer.Exit(1)
