"""A chat whose clients stay connected while it is reloaded. Change VERSION, then: sockshare reload chat

The old process hands its clients to the new one, with what it knows of them. The new one listens to nobody until it
has them all: so no message is said in a room of which half is still elsewhere. Clients talk to ws://HOST:PORT/ROOM/NAME.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator

from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Request, TextMessage

import sockshare
from sockshare.aio import put_together, start_server, take_apart

VERSION = "1"
SLOW = 5.0  # seconds for a client to take what was written to it


class Client:
    """One WebSocket connection, after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: str, name: str) -> None:
        self.reader, self.writer, self.room, self.name = reader, writer, room, name
        self.websocket = Connection(ConnectionType.SERVER)
        self.begun = b""  # the frames of a message that is not finished yet
        self.frame = b""  # a part of the next one
        self.task: asyncio.Task[None] | None = None

    def state(self, unread: bytes) -> bytes:
        """All that another process needs to go on."""
        left = (self.begun + self.frame + unread).hex()
        return json.dumps({"room": self.room, "name": self.name, "left": left}).encode()

    async def messages(self) -> AsyncIterator[str]:
        """What it says; may be cancelled at any time, and nothing is lost."""
        text = ""
        while True:
            while (missing := missing_of(self.frame)) > 0:
                self.frame += await self.reader.readexactly(missing)  # cancelled, it leaves what came in the reader
            self.begun, frame, self.frame = self.begun + self.frame, self.frame, b""
            self.websocket.receive_data(frame)
            for event in self.websocket.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        yield text
                        text = ""
                elif isinstance(event, Ping):
                    self.writer.write(self.websocket.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self.writer.write(self.websocket.send(event.response()))
                    return
            if not text:
                self.begun = b""

    def say(self, text: str) -> None:
        self.writer.write(self.websocket.send(Message(data=text)))


def missing_of(frame: bytes) -> int:
    """How many bytes of the frame have yet to come, as far as can be told (RFC 6455, 5.2)."""
    if len(frame) < 2:
        return 2 - len(frame)
    length = frame[1] & 127
    head = 2 + {126: 2, 127: 8}.get(length, 0) + (4 if frame[1] & 128 else 0)
    if len(frame) < head:
        return head - len(frame)
    if length > 125:
        length = int.from_bytes(frame[2 : 4 if length == 126 else 10], "big")
    return head + length - len(frame)


class Chat:
    """All rooms."""

    def __init__(self, share: sockshare.aio.Share) -> None:
        self.share = share
        self.clients: set[Client] = set()
        self.arriving: set[asyncio.Task[None]] = set()  # before the end of their handshake
        self.complete = asyncio.Event()  # everybody is here
        self.moving = False
        self.successor: socket.socket | None = None

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new client."""
        task = asyncio.current_task()
        assert task is not None
        self.arriving.add(task)
        try:
            websocket = WSConnection(ConnectionType.SERVER)
            websocket.receive_data(await reader.readuntil(b"\r\n\r\n"))
            request = next(websocket.events())
            assert isinstance(request, Request)
            room, _, name = request.target.strip("/").partition("/")
            writer.write(websocket.send(AcceptConnection()))
            client = Client(reader, writer, room, name)
            client.say(f"version {VERSION}, pid {os.getpid()}: hello")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            writer.close()
            return
        finally:
            self.arriving.discard(task)
        await self.serve(client)

    async def serve(self, client: Client) -> None:
        """To the end of the connection, or until it moves on."""
        client.task = asyncio.current_task()
        self.clients.add(client)
        try:
            await self.complete.wait()
            async for text in client.messages():
                for one in self.clients:
                    if one.room == client.room:
                        one.say(f"{client.name}: {text}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            if self.moving:
                return
            raise
        self.clients.discard(client)
        client.writer.close()

    async def take(self) -> None:
        """Take what other processes of this program hand over."""
        going_on = set()
        async for connection, state in self.share.connections():
            if state == b"successor":
                if self.successor is not None:
                    self.successor.close()
                self.successor = connection
                continue
            if state == b"last":
                connection.close()
                continue
            told = json.loads(state)
            reader, writer = await put_together(connection, bytes.fromhex(told["left"]))
            task = asyncio.create_task(self.serve(Client(reader, writer, told["room"], told["name"])))
            going_on.add(task)
            task.add_done_callback(going_on.discard)

    async def begin(self) -> None:
        """Wait until everybody is here that the process before this one has, if there is one; or until it has died.

        It is given one end of a socket pair, and gives it back as the last of what it hands over; closed here, in its
        turn, or there, it ends the wait.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                await self.share.hand_over(theirs, to=self.share.program, state=b"successor")
                await asyncio.get_running_loop().sock_recv(ours, 1)
            except sockshare.NoReceiver:
                theirs.close()  # this is the first
        self.complete.set()

    async def retire(self) -> None:
        """Hand every client over when a reload asks for it."""
        while True:
            to = await self.share.retiring.wait()
            if self.arriving:
                await asyncio.wait(self.arriving, timeout=SLOW)
            self.moving = True
            clients, self.clients = self.clients, set()
            for client in clients:
                assert client.task is not None
                client.task.cancel()
            await asyncio.gather(*(client.task for client in clients if client.task), return_exceptions=True)
            for client in clients:
                try:
                    parts = await asyncio.wait_for(take_apart(client.reader, client.writer), SLOW)
                    await self.share.hand_over(parts.connection, to=to, state=client.state(parts.unread))
                except (OSError, sockshare.SockshareError, asyncio.TimeoutError) as error:
                    print(f"{client.name} is lost: {error}", flush=True)
                    client.writer.close()
            self.moving = False
            if self.successor is not None:
                last, self.successor = self.successor, None
                try:
                    await self.share.hand_over(last, to=to, state=b"last")
                except (OSError, sockshare.SockshareError):
                    last.close()
            await self.share.retired()
            await self.share.retiring.over()  # if the reload is undone, this process goes on


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with sockshare.aio.attach() as share:
        chat = Chat(share)
        tasks = [asyncio.create_task(work()) for work in (chat.take, chat.retire, chat.begin)]
        server = await start_server(chat.connected, "chat", share=share)
        await share.ready("serving")
        await stopping.wait()
        server.close()
        for task in tasks:
            task.cancel()


asyncio.run(main())
