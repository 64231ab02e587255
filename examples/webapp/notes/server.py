"""The HTTP side: GET / and /notes, POST /notes, GET /healthz."""

import html
import json
import os
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from notes.store import Store

MAX_BODY = 64 * 1024
PAGE = """<!doctype html><title>notes</title>
<h1>notes</h1>
<ul>{items}</ul>
<p>version {version}</p>
"""


def handler(store, version):
    class Handler(BaseHTTPRequestHandler):
        server_version = "notes"

        def answer(self, status, body, kind="application/json"):
            if kind == "application/json":
                body = json.dumps(body) + "\n"
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind + "; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            if self.path == "/healthz":
                self.answer(200, {"status": "ok", "version": version})
            elif self.path == "/notes":
                self.answer(200, store.all())
            elif self.path == "/":
                items = "".join(f"<li>{html.escape(n['text'])}</li>" for n in store.all())
                self.answer(200, PAGE.format(items=items, version=html.escape(version)), "text/html")
            else:
                self.answer(404, {"error": "no such page"})

        def do_POST(self):
            if self.path != "/notes":
                return self.answer(404, {"error": "no such page"})
            try:
                size = int(self.headers.get("Content-Length", ""))
            except ValueError:
                return self.answer(411, {"error": "Content-Length is needed"})
            if not 0 <= size <= MAX_BODY:
                return self.answer(413, {"error": "the body is too large"})
            try:
                text = json.loads(self.rfile.read(size))["text"]
                self.answer(201, store.add(text))
            except (ValueError, KeyError, TypeError, AttributeError) as err:
                self.answer(400, {"error": str(err)})

    return Handler


def main():
    server = ThreadingHTTPServer(
        ("", int(os.environ.get("PORT", "8080"))),
        handler(Store(), os.environ.get("VERSION", "dev")),
    )

    def stop(*_):
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"listening on port {server.server_address[1]}", flush=True)
    server.serve_forever()
