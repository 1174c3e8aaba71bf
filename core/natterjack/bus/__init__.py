"""The bus: one connection to NATS, what is stored there, and a continuous pull. Nothing else imports `nats`."""

from natterjack.bus.batch import MAX_BATCH, BatchMessage, in_batch, store_batch
from natterjack.bus.connection import Bus
from natterjack.bus.consumer import Consumer, Place, consumer_sequence, place_of
from natterjack.bus.headers import encode as encode_headers
from natterjack.bus.headers import of_envelope
from natterjack.bus.mailbox import FAR, NO_RESPONDERS, Message, Replies, answered, envelope_of, error_of, status_of
from natterjack.bus.stored import AWAY, Stored, expecting, is_full, stored
from natterjack.bus.streams import STORE_BUDGET
from natterjack.bus.subscription import Subscription

__all__ = [
    "AWAY",
    "FAR",
    "MAX_BATCH",
    "NO_RESPONDERS",
    "STORE_BUDGET",
    "BatchMessage",
    "Bus",
    "Consumer",
    "Message",
    "Place",
    "Replies",
    "Stored",
    "Subscription",
    "answered",
    "consumer_sequence",
    "encode_headers",
    "envelope_of",
    "error_of",
    "expecting",
    "in_batch",
    "is_full",
    "of_envelope",
    "place_of",
    "status_of",
    "store_batch",
    "stored",
]
