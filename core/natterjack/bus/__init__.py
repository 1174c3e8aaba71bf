"""The bus: one connection to NATS, what is stored there, and a continuous pull. Nothing else imports `nats`."""

from natterjack.bus.connection import Bus, Subscription
from natterjack.bus.consumer import Consumer, Place, place_of
from natterjack.bus.mailbox import Message, error_of
from natterjack.bus.streams import STORE_BUDGET, Stored

__all__ = [
    "STORE_BUDGET",
    "Bus",
    "Consumer",
    "Message",
    "Place",
    "Stored",
    "Subscription",
    "error_of",
    "place_of",
]
