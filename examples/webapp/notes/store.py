"""Notes in memory, newest first, a bounded number of them."""

import itertools
import threading

MAX_NOTES = 1000
MAX_TEXT = 2000


class Store:
    def __init__(self):
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._notes = []

    def add(self, text):
        text = text.strip()
        if not text:
            raise ValueError("a note needs a text")
        if len(text) > MAX_TEXT:
            raise ValueError(f"a note has at most {MAX_TEXT} characters")
        with self._lock:
            note = {"id": next(self._ids), "text": text}
            self._notes.insert(0, note)
            del self._notes[MAX_NOTES:]
        return note

    def all(self):
        with self._lock:
            return list(self._notes)
