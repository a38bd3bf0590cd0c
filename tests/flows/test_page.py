"""The ask page in a real browser: questions, follow-ups, search in steps, and hostile documents."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.system.servers import Servers
from tests.conftest import KEY, System
from tests.flows.test_streaming import answering
from tests.standins.browser import CHROMIUM, Browser
from tests.standins.providers import (
    STOP_WORDS,
    AnthropicStandin,
    Block,
    cite,
    question_of,
    search_results,
    text_block,
    tool_use,
    words,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; Debian's package chromium is enough")
HOSTILE = """# Ferry tickets

Tickets are <img src="https://evil.example/a.png" onerror="fetch('https://evil.example/b')"> 12 euros.
![timetable](https://evil.example/c.png) and [here](https://evil.example/d) <script>location = "https://evil.example/e"</script>
"""


@pytest.fixture(scope="module")
def standin() -> Iterator[AnthropicStandin]:
    with AnthropicStandin(reply=reply) as standin:
        yield standin


@pytest.fixture(scope="module")
def system(
    servers: Servers, model: Path, tmp_path_factory: pytest.TempPathFactory, standin: AnthropicStandin
) -> Iterator[System]:
    with answering(servers, model, tmp_path_factory.mktemp("page"), standin, **{"ferry.md": HOSTILE}) as system:
        system.call("POST", "/ask", {"question": "Where is the key?"})  # after this request the server is known to cite
        yield system


@pytest.fixture
def page(system: System, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.open(f"http://127.0.0.1:{system.port}/?key={KEY}")
        browser.until("document.getElementById('counts').innerText.includes('3 ready')")
        yield browser
        own = (f"http://127.0.0.1:{system.port}/", "about:", "data:")
        assert [url for url in browser.requests if not url.startswith(own)] == []
        assert browser.complaints == []


def reply(request: dict[str, Any]) -> list[Block]:
    """Quote the sentence that shares the most words with the question. Search first if allowed; rewrite follow-ups."""
    if "stand alone" in str(request["system"]):
        return [text_block("What does a lost oar of the boathouse cost?")]
    if request.get("tools") and len(request["messages"]) == 1:
        return [tool_use("search", query="focal length of the main mirror")]
    asked = set(words(question_of({"messages": request["messages"][:1]}))) - STOP_WORDS
    places = [
        (n, i, block["text"]) for n, one in enumerate(search_results(request)) for i, block in enumerate(one["content"])
    ]
    n, i, text = max(places, key=lambda place: (not place[2].startswith("#"), len(asked & set(words(place[2])))))
    return [text_block(text.strip(), [cite(request, n, i)])]


def ask(page: Browser, question: str) -> None:
    page.run(f"document.getElementById('question').value = {json.dumps(question)}")
    page.run("document.getElementById('ask').requestSubmit()")
    page.until("document.getElementById('verdict')")
    page.until("document.getElementById('cancel').hidden")


def test_an_answer_is_shown_with_its_sources(page: Browser) -> None:
    ask(page, "When does the boathouse open in winter?")
    assert "8:00" in page.text("#answer")
    assert "[1]" in page.text("#answer")
    assert "boathouse.md" in page.text("#citations")
    assert page.run("document.getElementById('understood').hidden && document.getElementById('steps').hidden")
    page.run("document.querySelector('.rating button').click()")
    page.until("document.querySelector('.rating button').ariaPressed === 'true'")


def test_a_conversation_is_shown(page: Browser) -> None:
    ask(page, "When does the boathouse open in winter?")
    assert page.run("document.getElementById('question').value") == ""
    ask(page, "And a lost one?")
    assert page.text("#understood") == "Understood as: What does a lost oar of the boathouse cost?"
    assert "45 euros" in page.text("#answer")
    assert page.run("document.getElementById('turns').children.length") == 2
    assert "When does the boathouse open in winter?" in page.text("#turns")
    page.run("document.getElementById('fresh').click()")
    assert page.run("document.getElementById('conversation').hidden")
    ask(page, "And a lost oar of the boathouse?")
    assert page.run("document.getElementById('understood').hidden"), "nothing of before is sent along"


def test_searches_in_steps_are_shown(page: Browser) -> None:
    page.run("document.getElementById('deep').click()")
    ask(page, "What is the focal length of the telescope?")
    assert page.text("#steps").startswith("Searched for “focal length of the main mirror”: ")
    assert "1200" in page.text("#answer")


def test_hostile_documents_have_no_effect_on_the_page(page: Browser) -> None:
    ask(page, "What do tickets for the ferry cost in euros?")
    assert "12 euros" in page.text("#answer")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert (
        page.run("document.querySelectorAll('#answer img, #evidence img, #evidence script, a[href*=evil]').length") == 0
    )
    assert page.run("[...document.querySelectorAll('a')].every((one) => one.hash || one.origin === location.origin)")
