"""The bus over NATS JetStream: each bucket is an ordinary KV bucket (stream ``KV_<name>``), which the ``nats`` command
reads as such. Connections are never reused after a break, so that nothing refused to a caller is sent later.
"""

from shared.nats_bus.bus import NatsBus, connect
from shared.nats_bus.connection import advice, knock

__all__ = ["NatsBus", "advice", "connect", "knock"]
