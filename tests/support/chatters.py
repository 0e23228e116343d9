"""WebSocket clients that number what they say, and account for every message that they hear.

``python -m tests.support.chatters PORT ROOMS CLIENTS_A_ROOM MESSAGES_A_SECOND`` says "begun" once
all are connected, talks until a line comes on its standard input, then lets all arrive and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Request, TextMessage

SETTLE = 20.0  # s for what was said last


class Chatter:
    """One client."""

    def __init__(self, port: int, room: str, name: str) -> None:
        self.port, self.room, self.name = port, room, name
        self.said = 0
        self.heard: dict[str, int] = {}  # the last number, by who said it
        self.wrong: list[str] = []
        self.ended = ""
        self.greeting = ""
        self.versions: set[str] = set()
        self.longest = 0.0  # between two own messages and their echo, seconds
        self._sent_at: dict[int, float] = {}

    async def connect(self) -> None:
        """Return once the server has greeted."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.writer.write(self.websocket.send(Request(host="chat", target=f"/{self.room}/{self.name}")))
        self.greeted = asyncio.Event()
        self.task = asyncio.create_task(self._listen())
        await asyncio.wait_for(self.greeted.wait(), 30)

    async def _listen(self) -> None:
        text = ""
        try:
            while data := await self.reader.read(65536):
                self.websocket.receive_data(data)
                for event in self.websocket.events():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if event.message_finished:
                            self._hear(text)
                            text = ""
                    elif isinstance(event, CloseConnection):
                        self.ended = f"closed: {event.code} {event.reason}"
                        return
                    else:
                        assert isinstance(event, AcceptConnection), event
            self.ended = "end of file"
        except Exception as error:
            self.ended = repr(error)

    def _hear(self, text: str) -> None:
        if text.startswith("version "):
            self.greeting = text
            self.greeted.set()
            return
        who, _, number = text.partition(": ")
        found = int(number.partition(" ")[0])
        last = self.heard.get(who, 0)
        if found != last + 1:
            kind = "lost" if found > last + 1 else "again or out of order"
            self.wrong.append(f"{self.name} heard {found} after {last} of {who}: {kind}")
        self.heard[who] = found
        if who == self.name:
            self.longest = max(self.longest, asyncio.get_running_loop().time() - self._sent_at.pop(found))

    def say(self) -> None:
        """The next number, in a message that is now and then a long one."""
        self.said += 1
        self._sent_at[self.said] = asyncio.get_running_loop().time()
        length = (3, 300, 70_000)[0 if self.said % 7 else 1 if self.said % 21 else 2]
        self.writer.write(self.websocket.send(Message(data=f"{self.said} {'x' * length}")))


async def run(port: int, rooms: int, size: int, rate: float) -> dict[str, Any]:
    """The account."""
    loop = asyncio.get_running_loop()
    chatters = [Chatter(port, f"room{room}", f"c{room}-{number}") for room in range(rooms) for number in range(size)]
    for one in chatters:
        await one.connect()
    stop = loop.run_in_executor(None, sys.stdin.readline)
    print("begun", flush=True)
    pause = 1 / (rate * len(chatters))
    due = loop.time()
    while not stop.done():
        for one in chatters:
            if not one.ended:
                one.say()
            due += pause
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if stop.done():
                break
    deadline = loop.time() + SETTLE
    while loop.time() < deadline and any(missing(one, chatters) for one in chatters if not one.ended):
        await asyncio.sleep(0.05)
    account = {
        "clients": len(chatters),
        "said": sum(one.said for one in chatters),
        "heard": sum(sum(one.heard.values()) for one in chatters),
        "ended": [f"{one.name}: {one.ended}" for one in chatters if one.ended],
        "wrong": [wrong for one in chatters for wrong in one.wrong],
        "missing": [line for one in chatters for line in missing(one, chatters)],
        "longest": round(max(one.longest for one in chatters), 3),
    }
    for one in chatters:
        one.task.cancel()
        one.writer.close()
    return account


def missing(one: Chatter, chatters: list[Chatter]) -> list[str]:
    """What *one* has not heard."""
    return [
        f"{one.name} heard {one.heard.get(other.name, 0)} of {other.said} of {other.name}"
        for other in chatters
        if other.room == one.room and one.heard.get(other.name, 0) != other.said
    ]


if __name__ == "__main__":
    port, rooms, size, rate = sys.argv[1:]
    print(json.dumps(asyncio.run(run(int(port), int(rooms), int(size), float(rate)))), flush=True)
