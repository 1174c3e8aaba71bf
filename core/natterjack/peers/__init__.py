"""Peers: asking agents, and being asked."""

from natterjack.peers.answering import AskServer, Question, cancel_all, end_all
from natterjack.peers.asking import Peers
from natterjack.peers.conversation import AnswerStream, OnQuery
from natterjack.peers.replies import ReplyStream
from natterjack.peers.wire import ASK_TIMEOUT, MAX_DEPTH, loop_message

__all__ = [
    "ASK_TIMEOUT",
    "MAX_DEPTH",
    "AnswerStream",
    "AskServer",
    "OnQuery",
    "Peers",
    "Question",
    "ReplyStream",
    "cancel_all",
    "end_all",
    "loop_message",
]
