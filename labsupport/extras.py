"""Import libraries that not every installation has. Their absence is one line that names what to install."""

import importlib
from types import ModuleType

EXTRAS = {"ray": "scale", "psycopg": "scale", "ai_edge_litert": "edge", "boto3": "aws"}  # all others: lab


def imported(name: str) -> ModuleType:
    """Import a module of a library. Raises an ImportError that names the extra of labsupport to install.

    >>> imported("json").dumps([1])
    '[1]'
    """
    library = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise  # the library is here, and something that it needs is not
        raise ImportError(needed(library), name=library) from error


def needed(library: str) -> str:
    """Return the line that says how to install a library.

    >>> needed("pandas")
    "pandas is not installed: pip install 'labsupport[lab]'"
    """
    return f"{library} is not installed: pip install 'labsupport[{EXTRAS.get(library, 'lab')}]'"
