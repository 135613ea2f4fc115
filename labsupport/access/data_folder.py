"""Bundle the people, the audit trail and the keys of one data folder."""

from contextlib import suppress
from functools import cached_property
from pathlib import Path

from labsupport.access.audit import AuditTrail
from labsupport.access.keys import Keys, key_folder
from labsupport.access.users import Users


class Access:
    """Hold what a server needs to know its users: `users`, `trail` and `keys` of a data folder.

    Nothing is written before the first person is added.

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
        """Return whether anybody was ever added. Raises OSError if that cannot be found out.

        If somebody removes `users.db`, the trail's key shows it, because it is outside the data folder.
        """
        with suppress(ValueError):  # `LAB_KEYS` names no folder that could ever be used: then nobody was added
            return self.users.exist or self.trail.begun
        return False

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
