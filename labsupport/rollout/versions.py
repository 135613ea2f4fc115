"""Load each version once, outside of any request."""

import logging
import threading
from collections.abc import Callable, Iterable

from labsupport import arguments, background
from labsupport.detection import UnknownVersion, Version
from labsupport.models import ModelUnavailable

LOADING = "it is being loaded"

logger = logging.getLogger(__name__)


class Versions:
    """Keep versions in memory, by name. `load(name)` loads a version that was not given.

    >>> class Version:
    ...     def __init__(self, version): self.version = version
    ...     def detect(self, image, confidence=0.5): return []
    >>> versions = Versions([Version("v1")], load=Version)
    >>> versions.get("v2").version
    'v2'
    >>> versions.names()
    ['v1', 'v2']
    """

    def __init__(self, given: Iterable[Version], load: Callable[[str], Version] | None = None) -> None:
        """Keep the given versions. Raises ValueError for an object that is no version, and for two of one name."""
        if load is not None and not callable(load):
            raise ValueError(f"load={arguments.shown(load)}: give a function that makes a version of its name, or None")
        self._load = load
        self._loaded: dict[str, Version] = {}
        for version in given:
            if self.add(version) is not version:
                raise ValueError(f"two versions are called {version.version!r}: give each a name of its own")
        self._trouble: dict[str, str] = {}  # name -> why it is not in `_loaded`
        self._locks: dict[str, threading.Lock] = {}  # one for each name, held while that version is loaded
        self._guard = threading.Lock()

    @property
    def loads(self) -> bool:
        """Return whether a version that is not in memory can be loaded by its name."""
        return self._load is not None

    def names(self) -> list[str]:
        """Return the names of the versions in memory."""
        return sorted(self._loaded)

    def add(self, version: Version) -> Version:
        """Keep a version, and return the version kept under its name: the first one with that name.

        Raises ValueError if it is not a version.
        """
        if not hasattr(version, "version"):
            raise ValueError(f"{arguments.shown(version)} is no version: it has no name, version, as a Detector has")
        _check_name(version.version)
        if not callable(getattr(version, "detect", None)):
            raise ValueError(f"{arguments.shown(version)} is no version: it has no detect(image, confidence)")
        kept = self._loaded.setdefault(version.version, version)
        if kept is not version:
            logger.warning(
                "%s is known already, and the one that came first stays: give another one another name", kept.version
            )
        return kept

    def get(self, name: str) -> Version:
        """Return a version. If it is not in memory, load it and wait until it is loaded.

        Raises `UnknownVersion` for a name that is not known, and `ModelUnavailable` if the version cannot be loaded.
        """
        if name in self._loaded:
            return self._loaded[name]
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = self._made(name)
                except BaseException as error:
                    self._trouble[name] = f"it could not be loaded ({type(error.__cause__ or error).__name__})"
                    raise
                self._trouble.pop(name, None)
            return self._loaded[name]

    def ready(self, name: str) -> Version | None:
        """Return a version if it is in memory. If not, return None and begin to load it on another thread.

        A version that could not be loaded is not tried again, except by `get`.
        """
        if (version := self._loaded.get(name)) is None and name not in self._trouble:
            self._begin(name)
        return version

    def trouble(self, name: str) -> str:
        """Return why a version is not in memory; "" if it is, or if no caller has requested it."""
        return "" if name in self._loaded else self._trouble.get(name, "")

    def _begin(self, name: str) -> None:
        with self._guard:
            if name in self._trouble:
                return
            self._trouble[name] = LOADING
        try:
            background.start(lambda: self._try(name), f"load {name}")
        except RuntimeError:  # no thread is available now: the next request tries again
            del self._trouble[name]

    def _try(self, name: str) -> None:
        try:
            self.get(name)
        except BaseException as error:
            logger.error("%s gets no requests in this process, because it cannot be loaded: %r", name, error)

    def _made(self, name: str) -> Version:
        if self._load is None:
            raise UnknownVersion(
                f"no version is called {name!r}: there are {', '.join(self.names())}; give it to the Router"
            )
        try:
            version = self._load(name)
        except (UnknownVersion, ModelUnavailable):
            raise
        except Exception as error:
            logger.error("%s cannot be loaded", name, exc_info=True)
            raise ModelUnavailable(f"{name} cannot be loaded ({type(error).__name__}): the log says why") from error
        if getattr(version, "version", None) != name or not callable(getattr(version, "detect", None)):
            raise UnknownVersion(f"load({name!r}) gave {arguments.shown(version)}, which is no version of that name")
        _check_name(name)
        return version


def _check_name(name: object) -> None:
    """Raise ValueError unless this can be a version's name, which each answer carries in a header."""
    text = arguments.text("version.version", name, 200, least=1)
    if not (text.isascii() and text.isprintable()):
        raise ValueError(
            f"version.version={arguments.shown(name)}: give printable ASCII only: answers name it in a header"
        )
