"""Peers: asking agents, and being asked."""

from natterjack.peers.answering import AskServer, cancel_all
from natterjack.peers.asking import Peers
from natterjack.peers.wire import ASK_TIMEOUT, MAX_DEPTH, loop_message

__all__ = ["ASK_TIMEOUT", "MAX_DEPTH", "AskServer", "Peers", "cancel_all", "loop_message"]
