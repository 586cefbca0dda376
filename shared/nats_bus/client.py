"""nats-py's client as the bus needs it: its handshake, TLS, credentials and keep-alive, but no queue and no task
between the socket and whoever listens, one write per turn of the loop, and messages read by a shorter way (``parser``).

nats-py hands a message to a queue and wakes a task for each subscription, and wakes another for every publish. Both are
replaced here, by methods that it calls itself; with uvloop this halves what following a bucket or a request costs
(``docs/benchmarks/bus.md``). They are not part of its public interface: ``pyproject.toml`` bounds its version, and
``tests/contract/test_nats_client.py`` fails if it stops calling them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from nats.aio.client import Client
from nats.errors import SecureConnRequiredError
from nats.protocol import command
from typing_extensions import override

from shared.nats_bus.parser import DirectParser


class Msg(Struct, frozen=True, gc=False):
    """A message to one of our subscriptions. ``head``: as it came; empty if it has none, as few are ever looked at."""

    subject: str
    reply: str
    head: bytes
    data: bytes

    @property
    def status(self) -> str:
        """The status of a message by which the server itself says something (``503``: nobody listens); else empty."""
        if not self.head:
            return ""
        first = self.head[len(b"NATS/1.0") : self.head.index(b"\r\n")].split()
        return first[0].decode() if first else ""

    def headers(self) -> dict[str, str]:
        """Names and values of the head."""
        return parse_head(self.head)


Take = Callable[[Msg], None]
#: Told what was refused (``publish`` or ``subscription``) and its subject, in the library's small letters.
Denied = Callable[[str, str], None]

_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


def make_head(headers: dict[str, str]) -> bytes:
    """The head of a message with those names and values."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def parse_head(head: bytes) -> dict[str, str]:
    """Names and values in the head of a message."""
    lines = head.decode(errors="replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class DirectClient(Client):
    """See the module."""

    def __init__(self, denied: Denied | None = None, *, encrypted: bool = False) -> None:
        """
        Args:
            encrypted: say nothing to a server that does not encrypt, whatever it is.
        """
        super().__init__()
        self._denied = denied
        self._encrypted = encrypted
        self._takes: dict[int, Take] = {}
        self._ps = DirectParser(self, self._arrived)
        self._asked_to_flush = False

    def listen(self, subject: str, take: Take) -> int:
        """Call ``take`` with each message of the subject, in the order in which they come; the subscription's id."""
        self._sid += 1
        self._takes[self._sid] = take
        self._put(command.sub_cmd(subject, "", self._sid))
        return self._sid

    def unlisten(self, sid: int) -> None:
        """End ``listen``."""
        self._takes.pop(sid, None)
        self._put(command.unsub_cmd(sid, 0))

    def tell(self, subject: str, payload: bytes, reply: str, head: bytes = b"") -> None:
        """Publish. Subjects and heads are taken as they are: check them before."""
        if head:
            self._put(command.hpub_cmd(subject, reply, head, payload))
        else:
            self._put(command.pub_cmd(subject, reply, payload))

    @property
    def unsent(self) -> int:
        """Bytes that the server has not taken yet."""
        writer = self._writer()
        return 0 if writer is None else writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Drop the socket and what it had not sent: nats-py's own close waits for a peer that hangs to read it all."""
        writer = self._writer()
        if writer is not None:
            writer.transport.abort()

    def flush_now(self) -> None:
        """Hand what was told to the socket."""
        self._asked_to_flush = False
        pending, self._pending = self._pending, []
        self._pending_data_size = 0
        if pending and self._transport is not None and self._writer() is not None:
            self._transport.write(b"".join(pending))

    def _put(self, line: bytes) -> None:
        self._pending.append(line)
        if not self._asked_to_flush:
            self._asked_to_flush = True
            asyncio.get_running_loop().call_soon(self.flush_now)

    def _writer(self) -> asyncio.StreamWriter | None:
        writer = getattr(self._transport, "_io_writer", None)
        return writer if isinstance(writer, asyncio.StreamWriter) else None

    @override
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._arrived(sid, subject, reply, headers or b"", data)

    def _arrived(self, sid: int, subject: bytes, reply: bytes, head: bytes, data: bytes) -> None:
        take = self._takes.get(sid)
        if take is not None:
            take(Msg(subject.decode(), reply.decode(), head, data))

    @override
    def _connect_command(self) -> bytes:
        # What is sent first after the server's greeting, and by then encrypted if the server wants that.
        if self._encrypted and not self._server_info.get("tls_required"):
            raise SecureConnRequiredError
        return super()._connect_command()

    @override
    async def _process_err(self, err_msg: str) -> None:
        # The server names the subject in a sentence, and nothing else tells which of the messages it refused.
        found = _VIOLATION.search(err_msg)
        if found is not None and self._denied is not None:
            self._denied(found[1], found[2])
            return
        await super()._process_err(err_msg)

    @override
    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # As the original, but behind what was told before: its answer then says that all of that has arrived.
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        self._put(b"PING\r\n")

    @override
    async def _process_pong(self) -> None:
        # As the original, which fails where whoever asked has given up, and then reads no more.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0
