"""Files dropped, edited, renamed and deleted, with a real producer, worker and API."""

from tests.conftest import System, until


def test_drop_edit_rename_delete(system: System) -> None:
    system.start("web", "worker", "producer")
    (system.folder / "sub").mkdir()
    note = system.folder / "sub" / "note.md"
    note.write_text("# Heron\n\nThe heron eats about five hundred grams of fish a day.\n")
    until(lambda: [r for r in system.search("What does a heron eat?") if "five hundred" in r["content"]])
    note.write_text("# Heron\n\nThe heron eats about seven hundred grams of frogs a day.\n")
    until(lambda: [r for r in system.search("What does a heron eat?") if "seven hundred" in r["content"]])
    assert not [r for r in system.search("What does a heron eat?") if "five hundred" in r["content"]]
    note.rename(system.folder / "bird.md")
    until(lambda: [r for r in system.search("heron") if r["source"] == "bird.md"])
    assert len(system.search("heron")) == 1
    (system.folder / "bird.md").unlink()
    until(lambda: not system.search("heron"))
