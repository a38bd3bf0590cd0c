"""Several writers change the same documents, and tasks are sent twice: the complete last revision wins."""

import random
import threading
import time

import celery

from tests.faults.checks import check, settle
from tests.faults.folder import MARK, Folder, Sizes
from tests.faults.reader import Reader
from tests.faults.result import Result
from tests.faults.system import Faulty

SIZES = Sizes(small=(3, 28), middle_every=10, large_every=0)


class _Writer(threading.Thread):
    def __init__(self, folder: Folder, keys: list[str], seed: int, pause: float, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self.folder, self.keys, self.chance, self.pause, self.ended = folder, keys, random.Random(seed), pause, ended

    def run(self) -> None:
        while not self.ended.wait(self.chance.uniform(0.2, 1.8) * self.pause):
            self.folder.change(self.chance.choice(self.keys))


def writers(
    system: Faulty,
    writers: int,
    documents: int,
    seconds: float,
    slow: tuple[float, float] = (0.0, 6.0),
) -> Result:
    """Run the campaign. With `slow`, the first embedding may return last. Each document changes every 1 to 2 s."""
    result = Result("writers")
    folder = Folder(system.folder, "writers", 700_000, SIZES)
    keys = [folder.add() for _ in range(documents)]
    first = settle(system, 120)
    system.standin.slow = slow
    ended = threading.Event()
    threads = [_Writer(folder, keys, seed, 1.5 * writers / documents, ended) for seed in range(writers)]
    seen: dict[int, int] = {}  # document → the last stored revision
    back: list[str] = []
    stored = sent = 0
    with Reader(system, [folder], pause=0.05) as reader:
        for thread in threads:
            thread.start()
        started = printed = time.monotonic()
        while time.monotonic() - started < seconds:
            for number, text in _texts(system):
                found = MARK.search(text)
                if not found or int(found[1]) % 3 == 2:
                    continue  # in every third document, revisions keep the first line
                revision, before = int(found[2]), seen.get(number, 0)
                if revision < before:
                    back.append(f"document {number} went from revision {before} to {revision}")
                stored += revision > before
                seen[number] = revision
            if time.monotonic() - started > sent / 6:
                sent += _send_again(system, list(seen))
            if time.monotonic() - printed > 30:
                printed = time.monotonic()
                result.say(f"{folder.counts['changed']} changes")
            time.sleep(0.05)
        ended.set()
        for thread in threads:
            thread.join()
        settled = settle(system, 120)
    result.must(
        "documents ready at the start", documents if first is not None else "not all", f"{documents}", first is not None
    )
    result.tell("changes by writers", f"{folder.counts['changed']} by {writers} in {seconds:.0f} s")
    result.tell("revisions seen stored on the way, tasks sent twice", f"{stored}, {sent}")
    result.equal("times that a document went back to an older revision", len(back), 0)
    result.remarks += back[:3]
    result.settled(settled)
    result.damage(check(system, [folder], sample=documents))
    result.reader(reader)
    system.standin.slow = (0.0, 0.0)
    return result.finish()


def _texts(system: Faulty) -> list[tuple[int, str]]:
    return [
        (number, text)
        for number, text in system.rows(
            "SELECT document_id, left(content, 40) FROM document_text JOIN document d ON d.id = document_id "
            "WHERE starts_with(d.key, 'writers/')"
        )
    ]


def _send_again(system: Faulty, ids: list[int]) -> int:
    """Send some tasks again, like a queue that delivers twice or late."""
    with system.redis() as client:
        number = int(system.env["REDIS_URL"].rpartition("/")[2])
        client.select(number)
        names = [name.decode().rpartition(".")[2] for name in client.keys("_kombu.binding.folder-*")]
    if not names or not ids:
        return 0
    with celery.Celery(broker=system.env["REDIS_URL"], set_as_current=False) as app:
        for document in random.sample(ids, min(3, len(ids))):
            app.send_task("ingest", args=[document], queue=names[0])
    return min(3, len(ids))
