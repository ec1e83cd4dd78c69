"""The error for what a user of the command line got wrong: its text is all that is printed."""

from __future__ import annotations


class Mistake(Exception):
    """Something on the command line, or in a file that it names, that the user can set right."""
