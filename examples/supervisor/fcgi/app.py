"""A program on supervisord's own FastCGI socket, descriptor 0. Change VERSION, then: supervisorctl sockshare reload app

To stay short it speaks HTTP instead of FastCGI: a reload looks at neither.
"""

import os
import signal
import socket
import sys

VERSION = "1"

stopping: list[int] = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
listener = socket.socket(fileno=0)
listener.settimeout(0.1)
while not stopping:
    try:
        connection, _ = listener.accept()
    except (TimeoutError, BlockingIOError):
        continue
    with connection:
        connection.settimeout(5)
        connection.recv(65536)
        body = f"version {VERSION}, pid {os.getpid()}\n".encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
sys.exit(0)
