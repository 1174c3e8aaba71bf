"""Natterjack."""

from natterjack.components import Guard, Rule
from natterjack.hookspecs import hookimpl
from natterjack.rights import Verb
from natterjack.subjects import matches

__all__ = ["Guard", "Rule", "Verb", "hookimpl", "matches"]
