"""Becomes an nginx that takes its listener from descriptor 3; two workers, so that they wait with EPOLLEXCLUSIVE.

With APP_PATH it takes a second one, which it has to find at that path (`listen unix:PATH`).
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

CONFIGURATION = """\
daemon off;
worker_processes 2;
user root;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 512; accept_mutex off; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen {host}:{port};
        {more}
        default_type application/json;
        location /slow {{ limit_rate 150; return 200 '{{"version": "v1", "pid": $pid}}'; }}
        location / {{ return 200 '{{"version": "v1", "pid": $pid}}'; }}
    }}
}}
"""
with socket.socket(fileno=os.dup(3)) as listener:
    host, port = listener.getsockname()
home = Path(os.environ["APP_DIRECTORY"], f"nginx-{os.getpid()}")
home.mkdir()
path = os.environ.get("APP_PATH")
more = f"listen unix:{path};" if path else ""
descriptors = "3;4;" if path else "3;"
(home / "nginx.conf").write_text(CONFIGURATION.format(home=home, host=host, port=port, more=more))
program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or "nginx"
os.execve(program, [program, "-p", str(home), "-c", str(home / "nginx.conf")], {**os.environ, "NGINX": descriptors})
