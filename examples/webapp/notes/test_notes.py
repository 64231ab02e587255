import json
import threading
import unittest
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

from notes.server import handler
from notes.store import MAX_NOTES, MAX_TEXT, Store


class StoreTest(unittest.TestCase):
    def test_newest_first_and_bounded(self):
        store = Store()
        for i in range(MAX_NOTES + 5):
            store.add(f"note {i}")
        self.assertEqual(len(store.all()), MAX_NOTES)
        self.assertEqual(store.all()[0]["text"], f"note {MAX_NOTES + 4}")

    def test_refuses_empty_and_long(self):
        for text in ("", "  ", "x" * (MAX_TEXT + 1)):
            with self.assertRaises(ValueError):
                Store().add(text)


class ServerTest(unittest.TestCase):
    def setUp(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Store(), "test"))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def call(self, path, data=None):
        port = self.server.server_address[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data=data) as answer:
            return answer.status, answer.read().decode()

    def test_a_note_comes_back_escaped(self):
        status, _ = self.call("/notes", json.dumps({"text": "<b>hi</b>"}).encode())
        self.assertEqual(status, 201)
        self.assertIn("&lt;b&gt;hi", self.call("/")[1])
        self.assertEqual(json.loads(self.call("/notes")[1])[0]["text"], "<b>hi</b>")

    def test_bad_notes_are_400(self):
        for body in (b"nothing", b"[]", b'{"text": 1}'):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                self.call("/notes", body)
            self.assertEqual(caught.exception.code, 400)
            caught.exception.close()

    def test_health(self):
        self.assertEqual(json.loads(self.call("/healthz")[1])["status"], "ok")


if __name__ == "__main__":
    unittest.main()
