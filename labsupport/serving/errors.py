"""Maps each exception to an HTTP status and to the text that a client reads.

The answer, the log and the metrics use this one table. Most messages are written for clients, so the client gets them.
Other messages contain file names or addresses. For these the client gets a text from `TEXTS`, and the server's log gets
the message.
"""

from labsupport import images, models
from labsupport.detection import UnknownVersion
from labsupport.log import LogUnavailable, NotWritten, RecordClash, UnknownPrediction
from labsupport.protection import Overloaded
from labsupport.rollout import JournalUnavailable, WrongMoment, WrongRamp
from labsupport.serving import browser_page

STATUSES: dict[type[Exception], int] = {
    images.UnsupportedImage: 415,
    images.ImageTooLarge: 413,
    browser_page.UnknownFile: 404,
    UnknownPrediction: 404,
    UnknownVersion: 404,
    WrongMoment: 409,
    WrongRamp: 422,
    RecordClash: 422,
    models.ModelUnavailable: 503,
    models.NotInstalled: 503,
    Overloaded: 503,
    NotWritten: 503,
    JournalUnavailable: 503,
    LogUnavailable: 503,
}
TEXTS: dict[type[Exception], str] = {  # said instead of the exception's own message
    UnknownPrediction: "no prediction with that id is known here: take the id from the answer's header X-Prediction-Id",
    models.ModelUnavailable: "this model cannot be loaded at present, and the server's log says why: try again in a minute",
    NotWritten: "the log cannot be written at present: send it again in a second",
    JournalUnavailable: "the rollout cannot be read or written at present, so nothing was changed: try again in a second",
    LogUnavailable: "the log cannot be read at present: try again in a second",
}
FAILED = "the server failed, and its log says how: send it again"
SLOW = (models.ModelUnavailable,)  # what takes a person to mend: worth another try in a minute, all else in a second


def status(error: BaseException) -> int:
    """Return the HTTP status of `error`: 500 if it is not in the table.

    A subclass has the status of its nearest listed parent.

    >>> status(images.ImageTooLarge("too many pixels")), status(ZeroDivisionError())
    (413, 500)
    """
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def text(error: BaseException) -> str:
    """Return the text that a client reads about `error`: the one in `TEXTS`, otherwise the exception's own message.

    The nearest parent in `STATUSES` decides, as in `status`. An exception that is not in the table gives `FAILED`.

    >>> text(LogUnavailable("sqlite:////home/ann/predictions.db is locked"))
    'the log cannot be read at present: try again in a second'
    >>> text(images.ImageTooLarge("too many pixels"))
    'too many pixels'
    """
    nearest = next((kind for kind in type(error).__mro__ if kind in STATUSES), None)
    return TEXTS.get(nearest, str(error)) if nearest else FAILED


def headers(error: BaseException) -> dict[str, str] | None:
    """Return the headers of the answer to `error`: `Retry-After`, in seconds, for a 503; otherwise None.

    >>> headers(models.ModelUnavailable("not installed"))
    {'Retry-After': '60'}
    """
    if status(error) != 503:
        return None
    return {"Retry-After": "60" if isinstance(error, SLOW) else "1"}
