"""Protect the server from overload and from unauthorised requests, with limits and tokens."""

from labsupport.protection import admission, connections, people_guard, security
from labsupport.protection.admission import Admission, Rule
from labsupport.protection.memory import COPIES, LARGE_BODY, LARGE_PICTURE, LEAST, Budget, memory_limit, memory_needed
from labsupport.protection.people_guard import PeopleGuard
from labsupport.protection.security import WrongTokens, required_token, unfit
from labsupport.protection.slots import EXTRA_SLOTS, MOST_SLOTS, WAITING_PER_SLOT, Overloaded, Slots

__all__ = [
    "COPIES",
    "EXTRA_SLOTS",
    "LARGE_BODY",
    "LARGE_PICTURE",
    "LEAST",
    "MOST_SLOTS",
    "WAITING_PER_SLOT",
    "Admission",
    "Budget",
    "Overloaded",
    "PeopleGuard",
    "Rule",
    "Slots",
    "WrongTokens",
    "admission",
    "connections",
    "memory_limit",
    "memory_needed",
    "people_guard",
    "required_token",
    "security",
    "unfit",
]
