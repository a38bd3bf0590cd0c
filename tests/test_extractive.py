"""The threshold was chosen on state_of_the_union, chatlogs and wikitexts of chunking_eval and on xquad_de, and tested on its
finance and pubmed, on mtrag_cloud and on the English xquad. What follows is a small set of documents of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from api.citations import Draft
from api.extractive import Vectors, extract
from shared.embedding import LocalEmbedder
from shared.models import Passage

DOCUMENTS = {
    "welcome.txt": """\
Welcome to Harbour Street Studios!

Your desk is on the third floor, next to the kitchen. The door code is 4471; it changes on the first Monday of each month.
The wireless network is called HarbourGuest and its password hangs beside the printer.
Lunch is served from noon to half past one. Tell Priya if you eat no meat.
Everybody has 28 days of paid holiday a year. Ask your team lead at least two weeks ahead.
""",
    "README.md": """\
# Pelican

Pelican copies folders between machines and keeps them the same. It needs Python 3.9 or newer and runs on Linux and macOS.

## Installation

Install it from the package index:

```
pip install pelican-sync
```

## Configuration

| setting | default | meaning |
| --- | --- | --- |
| interval | 60 | seconds between two comparisons |
| workers | 4 | files that are copied at once |
| keep | 30 | days that deleted files are kept |

Settings are read from `~/.pelican.toml`. A file larger than 2 GB is copied in parts of 64 MB.

## Licence

Pelican is published under the MIT licence.
""",
    "docs/returns.html": """\
# Returns and refunds

You can send back an item within 30 days of delivery. Shoes must not have been worn outside.
Refunds are paid to the card that was used, usually within five working days.
We pay for the return label if the item was damaged. Gift cards cannot be returned.

# Shipping

Orders above 50 euros are shipped free of charge. Express delivery costs 12 euros and takes one day.
""",
    "report-2023.pdf": """\
Northwind Cooperative, annual report 2023

Revenue rose by 14 percent to 8.2 million euros, mainly because of the new bakery in Leeds.
The cooperative employed 112 people at the end of the year, nine more than a year before.
Energy costs fell after solar panels were put on the roof of the warehouse in March.
The board proposes to pay no dividend and to put 600,000 euros into the reserve.
The general meeting elected Amara Okafor as chair; she follows Tom Lindqvist, who retired.
""",
    "protokoll.docx": """\
# Protokoll der Vereinssitzung

Die Sitzung fand am 12. Mai im Rathaus statt. Anwesend waren 23 Mitglieder.
Der Mitgliedsbeitrag steigt ab Januar auf 48 Euro im Jahr.
Zur neuen Kassenwartin wurde Helga Brandt gewählt.
Das Sommerfest wird am 6. Juli auf der Wiese hinter der Schule gefeiert.
""",
}
ANSWERS = [
    ("What is the door code?", "welcome.txt", "4471"),
    ("How many days of holiday do I get?", "welcome.txt", "28 days"),
    ("When is lunch?", "welcome.txt", "noon"),
    ("What is the name of the wifi network?", "welcome.txt", "HarbourGuest"),
    ("Where is my desk?", "welcome.txt", "third floor"),
    ("How do I install Pelican?", "README.md", "pip install pelican-sync"),
    ("Which Python version does Pelican need?", "README.md", "3.9"),
    ("What is the default of the interval setting?", "README.md", "60"),
    ("Under which licence is Pelican published?", "README.md", "MIT"),
    ("How long are deleted files kept?", "README.md", "30"),
    ("How long do I have to return an item?", "docs/returns.html", "30 days"),
    ("What does express delivery cost?", "docs/returns.html", "12 euros"),
    ("Can I return a gift card?", "docs/returns.html", "cannot be returned"),
    ("When do I get my refund?", "docs/returns.html", "five working days"),
    ("How much did revenue grow in 2023?", "report-2023.pdf", "14 percent"),
    ("How many people work for the cooperative?", "report-2023.pdf", "112"),
    ("Who was elected chair?", "report-2023.pdf", "Amara Okafor"),
    ("Why did energy costs fall?", "report-2023.pdf", "solar panels"),
    ("Wie hoch ist der Mitgliedsbeitrag?", "protokoll.docx", "48 Euro"),
    ("Wann ist das Sommerfest?", "protokoll.docx", "6. Juli"),
    ("Wer wurde zur Kassenwartin gewählt?", "protokoll.docx", "Helga Brandt"),
]
NOWHERE = [
    "What is the capital of Mongolia?",
    "Who won the 1998 World Cup?",
    "How do I bake sourdough?",
    "What is the boiling point of nitrogen?",
    "Who wrote Crime and Punishment?",
    "How tall is Mount Kilimanjaro?",
    "Wie funktioniert ein Dieselmotor?",
    "Wer schrieb den Zauberberg?",
    "Does Pelican encrypt files with a passphrase?",
    "How do I connect Pelican to Amazon S3?",
    "What is the salary of a senior engineer?",
    "Is there a parking garage for bicycles?",
    "What was the revenue of Contoso in 1987?",
]


def passages() -> list[Passage]:
    found = []
    for number, (source, text) in enumerate(DOCUMENTS.items(), 1):
        start = 0
        for part in text.split("\n\n## ") if source == "README.md" else [text]:
            start = text.index(part, start)
            found.append(passage(part, source, number, start, len(found)))
    return found


def passage(content: str, source: str = "a.txt", document_id: int = 1, start: int = 0, chunk_id: int = 1) -> Passage:
    return Passage(chunk_id, document_id, source, None, content, 1.0, None, (), start, start + len(content))


@pytest.fixture(scope="module")
def embed(model: Path) -> Callable[[Sequence[str]], Vectors]:
    return LocalEmbedder(model).embed


def quotes(draft: Draft) -> list[str]:
    return [claim.quote for statement in draft.statements for claim in statement.claims]


if __name__ == "__main__":
    from api import extractive as X

    e = LocalEmbedder(Path("/tmp/h2/model")).embed
    P = passages()
    V = e([p.content for p in P])
    for q, src, want in [*ANSWERS, *((n, "", "") for n in NOWHERE)]:
        order = np.argsort(-(V @ e([q])[0]))[:8]
        ps = [P[i] for i in order]
        sp = [X._spans(p.content) for p in ps]
        ev = X._rate(q, ps, [[p.content[a:b] for a, b in s] for p, s in zip(ps, sp)], e)[1]
        d = extract(q, ps, e)
        cl = [c for s in d.statements for c in s.claims]
        ok = (not cl) if not src else bool(cl) and ps[cl[0].passage].source == src and want in cl[0].quote
        print(
            "ok " if ok else "BAD",
            round(ev, 2),
            q,
            [(ps[c.passage].source, c.quote[:60]) for c in cl] if not ok or 1 else "",
        )
