"""Manage who may do what: people with roles and tokens, the audit trail, keys that encrypt pictures, certificates."""

from importlib import import_module
from types import ModuleType

from labsupport.access import tls_files
from labsupport.access.audit import AuditTrail, AuditUnavailable, lines
from labsupport.access.data_folder import Access
from labsupport.access.entry import Entry
from labsupport.access.kept_uploads import Uploads
from labsupport.access.keys import Damaged, Forgotten, Keys, NoKey, key_folder, keys_for
from labsupport.access.users import (
    CHANGE,
    ID,
    OTHERS,
    OWNER,
    PREDICT,
    READ,
    READER,
    RESERVED,
    ROLES,
    Person,
    Users,
    UsersUnavailable,
)

__all__ = [
    "CHANGE",
    "ID",
    "OTHERS",
    "OWNER",
    "PREDICT",
    "READ",
    "READER",
    "RESERVED",
    "ROLES",
    "Access",
    "AuditTrail",
    "AuditUnavailable",
    "Damaged",
    "Entry",
    "Forgotten",
    "Keys",
    "NoKey",
    "Person",
    "Uploads",
    "Users",
    "UsersUnavailable",
    "certificates",
    "key_folder",
    "keys_for",
    "lines",
    "tls_files",
]


def __getattr__(name: str) -> ModuleType:
    """Load `certificates` when it is used: it needs 7 MB, which a server saves."""
    if name != "certificates":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("labsupport.access.certificates")
