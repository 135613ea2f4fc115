"""Bundle the people, the audit trail and the keys of one data folder."""

from functools import cached_property
from pathlib import Path

from labsupport.access.audit import AuditTrail
from labsupport.access.keys import Keys, key_folder
from labsupport.access.users import Users


class Access:
    """Hold what a server needs to know its users: `users`, `trail` and `keys` of a data folder.

    Nothing is written before the first user is added or the first request of a user arrives.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> access = Access(Path(folder.name))
    >>> access.users.all(), [*Path(folder.name).iterdir()]
    ([], [])
    >>> folder.cleanup()
    """

    def __init__(self, folder: Path) -> None:
        """Name the data folder. Raises ValueError if it is not the Path of a folder."""
        if not isinstance(folder, Path) or not folder.is_dir():
            raise ValueError(f"folder={folder!r}: give the Path of a data folder, as paths.root_or_data() returns it")
        self.folder = folder.resolve()
        self.users = Users(self.folder / "users.db")

    @property
    def key_folder(self) -> Path:
        """Return the folder of the keys, outside the data folder."""
        return key_folder(self.folder)

    @property
    def active(self) -> bool:
        """Return whether there are people, or were: the trail's key lies outside of the data folder. Raises OSError."""
        return self.users.exist or self.trail.begun

    @cached_property
    def trail(self) -> AuditTrail:
        return AuditTrail(self.folder / "audit.db", self.key_folder)

    def close(self) -> None:
        """Write what waits for the trail, and close its file."""
        if "trail" in vars(self):
            self.trail.close()

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.key_folder)
