"""A Flask application, on Flask's development server (``wsgi.py flask``) or on waitress (``wsgi.py waitress``)."""

from __future__ import annotations

import logging
import sys

from flask import Flask, Response

from tests.support.apps import behaviour

app = Flask(__name__)


@app.get("/", defaults={"path": ""})
@app.get("/<path:path>")
def page(path: str) -> Response:
    """Any page."""
    status, body = behaviour.answer(f"/{path}") or (500, b"")
    return Response(body, status, content_type="application/json")


def main() -> None:
    """Serve for ever."""
    if sys.argv[1] == "waitress":
        import waitress

        waitress.serve(app, sockets=[behaviour.listener()], threads=40)  # as many as the load may have in hand
    else:
        from werkzeug.serving import WSGIRequestHandler, make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        WSGIRequestHandler.protocol_version = "HTTP/1.1"
        host, port = behaviour.listener().getsockname()
        make_server(host, port, app, threaded=True, fd=behaviour.FD).serve_forever()  # as run_simple() does


if __name__ == "__main__":
    main()
