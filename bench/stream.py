"""Measure streamed answers and the bare SDK on the same stand-in in one run; then many and abandoned streams.

usage: python -m bench.stream [QUESTIONS] [AT_ONCE]

The lateness of a sentence is the time from the stand-in's last citation for it to the arrival of the sentence
(askfolder, over HTTP) or of the citation (SDK).
"""

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2

from bench.ingest import running
from shared.client import Client
from shared.errors import AskfolderError
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from tests.conftest import KEY, System
from tests.standins.providers import AnthropicStandin, Block, Handler, cite, search_results, text_block

FILES = ROOT / "tests" / "data" / "questions"
QUESTION = "What do the notes say about the boathouse?"
SENTENCES = 3
PACE = 0.004  # seconds between two events of the stand-in


class Watched(AnthropicStandin):
    """A stand-in that records the time of the last citation of each block in the latest answer."""

    def __init__(self) -> None:
        super().__init__(reply=quote_some)
        self.pace = PACE
        self.sent: dict[int, float] = {}

    def send_event(self, handler: Handler, event: Block) -> None:  # type: ignore[override]
        if event.get("delta", {}).get("type") == "citations_delta":
            self.sent[event["index"]] = time.monotonic()
        AnthropicStandin.send_event(handler, event)


def quote_some(request: dict[str, Any]) -> list[Block]:
    places = [(n, i) for n, one in enumerate(search_results(request)) for i in range(len(one["content"]))]
    texts = [(place, search_results(request)[place[0]]["content"][place[1]]["text"].strip()) for place in places]
    good = [(place, text) for place, text in texts if len(text) > 30 and not text.startswith("#")][:SENTENCES]
    return [text_block(text + " ", [cite(request, *place)]) for place, text in good]


def askfolder(system: System, standin: Watched, count: int) -> tuple[list[float], list[float]]:
    """Return the lateness of each sentence, and of the passages after their retrieval, in milliseconds."""
    late, passages = [], []
    with Client(f"http://127.0.0.1:{system.port}", KEY, 30) as client:
        for _ in range(count):
            standin.sent.clear()
            started, arrived = time.monotonic(), []
            for name, data in client.events("/ask", {"question": QUESTION}):
                if name == "passages":
                    took = sum(data["timings"].values())
                    passages.append((time.monotonic() - started) * 1000 - took)
                elif name == "delta":
                    arrived.append(time.monotonic())
            late += [(at - standin.sent[n]) * 1000 for n, at in enumerate(arrived)]
    return late, passages


def bare(standin: Watched, request: dict[str, Any], count: int) -> list[float]:
    late = []
    http = httpx2.Client(trust_env=False)
    client = anthropic.Anthropic(api_key="k", base_url=standin.url, max_retries=0, http_client=http)
    for _ in range(count):
        standin.sent.clear()
        with client.messages.stream(**request) as stream:
            for event in stream:
                if event.type == "content_block_delta" and event.delta.type == "citations_delta":
                    late.append((time.monotonic() - standin.sent[event.index]) * 1000)
    http.close()
    return late


def at_once(system: System, count: int) -> tuple[Counter[str], float]:
    """Return the outcomes of `count` simultaneous streams, and their seconds."""
    ends: Counter[str] = Counter()

    def one() -> None:
        try:
            with Client(f"http://127.0.0.1:{system.port}", KEY, 60) as client:
                ends[list(client.events("/ask", {"question": QUESTION}))[-1][0]] += 1
        except AskfolderError as error:
            ends[str(error)] += 1

    threads = [threading.Thread(target=one) for _ in range(count)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends, time.monotonic() - started


def abandoned(system: System, standin: Watched) -> float:
    """Return the seconds from a client's disconnect to the end of the model's call, which is silent."""
    standin.left.clear()
    standin.misbehave("stall")
    with Client(f"http://127.0.0.1:{system.port}", KEY, 30) as client:
        events = client.events("/ask", {"question": QUESTION})
        next(events)
        time.sleep(0.3)
        events.close()  # type: ignore[attr-defined]
    left = time.monotonic()
    if not standin.left.wait(10):
        return float("inf")
    return time.monotonic() - left


def percentiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    return f"p50 {statistics.median(ordered):5.1f} ms   p95 {p95:5.1f} ms   worst {ordered[-1]:5.1f} ms"


def main(questions: int, many: int) -> None:
    with tempfile.TemporaryDirectory() as name, Watched() as standin:
        minilm.prepare(Path(name) / "data" / LOCAL_MODEL)
        env = {"ANTHROPIC_API_KEY": "sk-ant-bench", "ANTHROPIC_BASE_URL": standin.url}
        with running(Path(name)) as system:
            for path in FILES.glob("*.md"):
                shutil.copy(path, system.folder)
            while not system.search("Where is the key of the boathouse?", top_k=1)[0]["source"].startswith("boathouse"):
                time.sleep(0.1)
            system.stop("worker", "producer", "web")
            system.env |= env
            system.start("web")
            askfolder(system, standin, 3)
            request = {k: v for k, v in standin.requests[-1]["body"].items() if k != "stream"}
            late: list[float] = []
            passages: list[float] = []
            theirs: list[float] = []
            for _ in range(max(questions // 10, 1)):  # in turns, because the speed of the machine varies
                one, two = askfolder(system, standin, 10)
                late, passages, theirs = late + one, passages + two, theirs + bare(standin, request, 10)
            print(f"a sentence, after its last token and citation   {percentiles(late)}")
            print(f"the same event by the bare SDK                  {percentiles(theirs)}")
            print(f"the passages, after their retrieval             {percentiles(passages)}")
            ends, seconds = at_once(system, many)
            kinds = dict(ends) if len(ends) > 1 else ""
            print(f"{many} at once: {ends['done']} answered, {many - ends['done']} not, in {seconds:.1f} s {kinds}")
            seconds = max(abandoned(system, standin) for _ in range(5))
            print(f"left: the model's call ended at most {seconds:.2f} s later, of 5")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [100, 100][len(arguments) :]))
