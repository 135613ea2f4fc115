"""Sends records from the outbox to the server: in order, in batches, and repeatedly until the server confirms them."""

import json
import logging
import threading
from typing import Any

from labsupport import arguments, background
from labsupport.detection import NOT_OURS
from labsupport.edge.breaker import Backoff
from labsupport.edge.deadline import NoAnswer, exchange
from labsupport.edge.outbox import Outbox, OutboxUnavailable

MOST_DETAIL = 10_000  # characters of a refusal
BATCH = 100  # records in one request: the server takes no more
PATIENCE = 5.0  # seconds for a batch
POISON = (413, 422)  # what the server says of a record that it will never take; all else may pass

logger = logging.getLogger(__name__)


class Forwarder:
    """Sends the waiting records of an outbox to `POST /records`, on its own thread.

    A batch counts as sent when the server confirms that it has every record of it, new or known. If the server refuses
    a batch, we send record by record until we find the refused one. That record is kept aside with the server's
    message, and the rest goes on. After any other error, including a wrong token, we try again, after longer and longer
    pauses.
    """

    def __init__(self, outbox: Outbox, url: str, headers: dict[str, str]) -> None:
        self.outbox, self.url = outbox, f"{arguments.address('url', url)}/records"
        self.headers = {**headers, "Content-Type": "application/json"}
        self._sending, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._backoff, self._troubled = Backoff(), False
        self._pause: float | None = None  # seconds; None: until there is something to send
        self._thread = background.repeat(self._sent, "forward", self._closing, after_error=0)

    def wake(self) -> None:
        """Report that there is something to send, or that the server is back."""
        self._wake.set()

    def forward(self) -> int:
        """Send all waiting records now; return the number the server accepted. Raises `NoAnswer` and `OutboxUnavailable`."""
        with self._sending:
            taken, most = 0, BATCH
            while batch := self.outbox.batch(most):
                numbers = [number for number, _ in batch]
                if (refusal := self._refusal([record for _, record in batch])) is not None:
                    if len(batch) == 1:
                        self.outbox.refuse(numbers[0], refusal)
                        logger.warning("the server refuses %s for good: %s", batch[0][1]["product"], refusal)
                    most = BATCH if len(batch) == 1 else 1
                else:
                    self.outbox.sent(numbers)
                    taken += len(batch)
            return taken

    def close(self) -> None:
        """Stop sending. Waiting records are sent when the outbox is opened again."""
        self._closing.set()
        self._wake.set()
        self._thread.join(2 * PATIENCE)

    def _refusal(self, records: list[dict[str, Any]]) -> str | None:
        """Return the server's reason for refusing these records, or None if it has them now. Raises `NoAnswer` otherwise."""
        status, body = exchange("POST", self.url, PATIENCE, json.dumps(records).encode(), self.headers)
        try:
            answer = json.loads(body)
            if status in POISON:
                return arguments.text("detail", answer["detail"], most=MOST_DETAIL, least=1)
            if status == 200 and answer["new"] + answer["known"] == len(records):
                return None
        except NOT_OURS:  # a proxy in between, a page to log in
            pass
        raise NoAnswer(f"{status}: {body[:200].decode(errors='replace')}")

    def _sent(self) -> bool:
        """Wait until there is something to send or the pause is over, and send it; return True once closed."""
        self._wake.wait(self._pause)
        self._wake.clear()
        if self._closing.is_set():
            return True
        self._pause = self._backoff.next()  # until the next try, if this one fails in whatever way
        try:
            self.forward()
        except (NoAnswer, OutboxUnavailable) as error:
            if not self._troubled:  # once, not with every try
                self._troubled = True
                logger.warning("records wait to be forwarded to %s: %s", self.url, error)
            return False
        self._pause, self._troubled = None, False
        self._backoff.reset()
        return False
