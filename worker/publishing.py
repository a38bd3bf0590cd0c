"""Publish documents to the queue, within a window."""

NO_REDIS_SECONDS = 2.0

WAITING_FILES, WAITING_BYTES = 24, 16_000  # the window: what may wait in the queue, besides what is being worked on

TINY_BYTES = 4_000  # … and so small that it may pass by what waits
