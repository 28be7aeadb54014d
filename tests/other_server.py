"""A server with OpenAI's API whose responses a test decides, also wrong ones."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = {"data": [{"id": "small"}, {"id": "large"}]}


class Other:
    """A server with OpenAI's paths whose response to a POST is given, or made by a function of the request's body.

    Such a function returns (status, body), or (status, body, headers). `requests` are (path, headers, body); `closed`
    is set when a client leaves before the response.
    """

    def __init__(self, reply=None, status=200, models=MODELS, delay=0.0, raw=None):
        self.reply, self.requests, self.closed = reply, [], threading.Event()
        other = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                other.requests.append((self.path, self.headers, None))
                self.answer(200, models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                other.requests.append((self.path, self.headers, body))
                self.connection.settimeout(delay or 1)
                if delay:
                    with contextlib.suppress(TimeoutError):
                        if self.connection.recv(1) == b"":
                            other.closed.set()
                            self.close_connection = True
                            return
                if raw is None:
                    self.answer(*(other.reply(body) if callable(other.reply) else (status, other.reply)))
                    return
                with contextlib.suppress(OSError):
                    for piece in raw:
                        self.wfile.write(piece)
                self.close_connection = True

            def answer(self, status, body, headers=None):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
