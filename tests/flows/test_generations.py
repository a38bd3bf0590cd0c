"""A change of the embedder: the old index answers until the new one is complete; changing back costs nothing."""

import os
import threading

import httpx2
import psycopg

from tests.conftest import KEY, System, until
from tests.flows.test_ingest import texts, words
from tests.standins.providers import OpenAIStandin

DOCUMENTS = int(os.environ.get("SWITCH_DOCUMENTS", "20"))  # about 14 chunks each; 150 make 2,000
LINES = 40


def test_the_embedder_is_switched_and_switched_back_during_searches(system: System, database_url: str) -> None:
    with OpenAIStandin() as standin:
        system.env |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": standin.url}
        for n in range(DOCUMENTS):
            (system.folder / f"d{n}.txt").write_text("\n".join(words(i, seed=n) for i in range(LINES)))
        system.start("web", "worker", "producer")
        system.settled(DOCUMENTS, 60 + DOCUMENTS)

        done, wrong, answered = threading.Event(), [], [0]
        wanted = [words(7, seed=3), words(21, seed=11)]

        def ask_without_pause() -> None:
            with httpx2.Client(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {KEY}"}) as client:
                while not done.is_set():
                    for line, source in zip(wanted, ("d3.txt", "d11.txt"), strict=True):
                        response = client.post(
                            f"http://127.0.0.1:{system.port}/search", json={"query": line, "top_k": 5}
                        )
                        results = response.json().get("results", [])
                        answered[0] += 1
                        if response.status_code != 200 or response.json()["warnings"] or results[0]["source"] != source:
                            wrong.append(response.text[:300])

        client = threading.Thread(target=ask_without_pause)
        client.start()

        def live() -> str:
            with psycopg.connect(database_url) as connection:
                row = connection.execute("SELECT embedder FROM askfolder.generation WHERE state = 'live'").fetchone()
                return str(row and row[0])

        try:
            system.stop("producer", "worker")
            system.start("worker", "producer", ASKFOLDER_EMBEDDER="openai")
            until(lambda: live() == "openai", 60 + DOCUMENTS)
            paid = texts(standin)
            (system.folder / "new.txt").write_text("A line that came in between, about the heron.")
            until(lambda: system.documents().get("new.txt", {}).get("state") == "ready")
            system.stop("producer", "worker")
            system.start("worker", "producer", ASKFOLDER_EMBEDDER="local")
            until(lambda: live() == "local", 60 + DOCUMENTS)
        finally:
            done.set()
            client.join()
        assert wrong == []
        assert answered[0] > 20
        document_texts = [
            r for r in standin.requests if len(r["body"]["input"]) > 1 or "heron" in str(r["body"]["input"])
        ]
        assert sum(len(r["body"]["input"]) for r in document_texts) <= paid + 1, (
            "the way back asks the provider nothing"
        )
        with psycopg.connect(database_url) as connection:
            cached: dict[str, int] = dict(
                connection.execute("SELECT model, count(*) FROM askfolder.vector_cache GROUP BY model").fetchall()
            )
            mixed = connection.execute(
                """
                SELECT count(*)
                FROM askfolder.chunk c JOIN askfolder.generation g ON g.id = c.generation_id AND g.state = 'live'
                WHERE NOT EXISTS (SELECT 1 FROM askfolder.vector_1 v WHERE v.chunk_id = c.id)
                """
            ).fetchone()
        assert mixed == (0,)
        print(f"{answered[0]} searches, {cached} vectors")
        assert set(cached) == {"all-MiniLM-L6-v2-int8", "text-embedding-3-small"}
        assert system.search("heron")[0]["source"] == "new.txt"


def test_another_chunk_size_is_built_beside_the_live_index(system: System, database_url: str) -> None:
    """Each index keeps its chunk size, which may exceed the maximum input of the built-in model."""
    (system.folder / "long.txt").write_text(" ".join(f"Sentence {n} says something of the heron." for n in range(200)))
    system.start("web", "worker", "producer")
    system.settled(1)

    def sizes() -> list[tuple[str, int]]:
        with psycopg.connect(database_url) as connection:
            return connection.execute(
                """
                SELECT state, max(char_end - char_start)
                FROM askfolder.chunk c JOIN askfolder.generation g ON g.id = c.generation_id
                GROUP BY g.id, state ORDER BY g.id
                """
            ).fetchall()

    before = sizes()
    system.stop("producer", "worker")
    system.start("worker", "producer", ASKFOLDER_CHUNK_TOKENS="400")
    until(lambda: [state for state, _ in sizes()] == ["retired", "live"], 60)
    assert sizes()[0][1] == before[0][1]
    assert sizes()[1][1] > 1.4 * before[0][1]
    assert system.search("heron")[0]["source"] == "long.txt"
