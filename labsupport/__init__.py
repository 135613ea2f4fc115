"""A deployment lab: a picture comes in, an answer goes out, and what happened is written down.

Each module is one idea and can be read alone; nothing heavy is imported before it is used.
"""

__version__ = "0.1.0"
