"""One table from an exception to the HTTP status that it comes to: the answer, the log and the metrics all read it."""

from labsupport import admission, browser, images, models
from labsupport.journal import JournalUnavailable
from labsupport.monitoring import LogUnavailable, NotWritten, UnknownPrediction
from labsupport.rollout import UnknownVersion, WrongMoment, WrongRamp

STATUSES: dict[type[Exception], int] = {
    images.UnsupportedImage: 415,
    images.ImageTooLarge: 413,
    browser.UnknownFile: 404,
    UnknownPrediction: 404,
    UnknownVersion: 404,
    WrongMoment: 409,
    WrongRamp: 422,
    models.ModelUnavailable: 503,
    admission.Overloaded: 503,
    NotWritten: 503,
    JournalUnavailable: 503,
    LogUnavailable: 503,
}
SLOW = (models.ModelUnavailable,)  # what takes a person to mend: worth another try in a minute, all else in a second


def status(error: BaseException) -> int:
    """Return the HTTP status that `error` comes to: 500 if it is not in the table.

    A subclass has the status of its nearest listed parent.

    >>> status(images.ImageTooLarge("too many pixels")), status(ZeroDivisionError())
    (413, 500)
    """
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def headers(error: BaseException) -> dict[str, str] | None:
    """Return the headers that go with the answer to `error`: `Retry-After`, in seconds, with a 503; else None.

    >>> headers(models.ModelUnavailable("not installed"))
    {'Retry-After': '60'}
    """
    if status(error) != 503:
        return None
    return {"Retry-After": "60" if isinstance(error, SLOW) else "1"}
