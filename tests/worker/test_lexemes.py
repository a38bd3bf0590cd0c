"""The text search configuration of a document. tests/api/test_retrieval.py tests the counts of lexemes."""

import pytest

from shared.db import Connection
from worker.indexing import lexemes

NOTES = """\
Note on vacation policy
Server room door code 4711
Printer toner: order black, two pieces
Dentist Tuesday 9:15
Boiler service, call Mr. Hansen
Guest wifi password is on the fridge
Minutes of the board, May
Invoice 2024-118, paid
Parking permit for visitors
Bike lock combination
Recipe: lentil soup
Key for the garden shed
Insurance claim, water damage
Team lunch on Friday at noon
Router reset procedure
Spare bulbs in the cellar
Alarm code changed in March
Emergency contacts
Tax adviser: new phone number
Laptop inventory, second floor
Rent due on the first
Backup tapes, weekly rotation
Travel expenses, Lisbon
Cat food: two tins a day
Onboarding checklist
Meter readings, December
Birthday list
Fire drill, assembly point B
Coffee machine descaling
Window cleaner every six weeks
Lease ends in 2027
Contract draft, version 3
Library card number
Waste collection: paper, plastic, glass
Projector remote needs batteries
Sprint retrospective
Allergy list for camp
Old hard drives: shred
Plumber's estimate
Holiday rota""".splitlines()
GERMAN = "Der Ausschuss hat am Dienstag beschlossen, dass die Brücke während der Reparatur gesperrt werden soll. " * 2


def add_document(connection: Connection, configuration: str) -> int:
    """Insert a document with this text search configuration. Return its collection."""
    row = connection.execute(
        """
        WITH folder AS (
            INSERT INTO source (collection_id, kind, root) SELECT id, 'folder', '/x' FROM collection
            ON CONFLICT (kind, root) DO UPDATE SET root = excluded.root RETURNING id, collection_id)
        INSERT INTO document (source_id, collection_id, key, state, wanted_revision, wanted_size, configuration)
        SELECT id, collection_id, gen_random_uuid()::text, 'ready', '1-1', 1, %s FROM folder RETURNING collection_id
        """,
        [configuration],
    ).fetchone()
    assert row is not None
    return int(row[0])


def collection_of(connection: Connection) -> int:
    row = connection.execute("SELECT id FROM collection").fetchone()
    assert row is not None
    return int(row[0])


def test_short_english_notes_are_english_even_in_an_empty_collection(connection: Connection) -> None:
    assert len(set(NOTES)) == 40
    collection = collection_of(connection)
    for note in NOTES:
        assert lexemes.configuration(connection, collection, note) == "english", note
        add_document(connection, "english")


def test_a_short_text_takes_the_language_of_most_documents(connection: Connection) -> None:
    for configuration in ("english", "german", "german", "simple"):
        collection = add_document(connection, configuration)
    for note in NOTES:
        assert lexemes.configuration(connection, collection, note) == "german"
    connection.execute("UPDATE document SET state = 'deleted' WHERE configuration = 'german'")
    add_document(connection, "english")
    assert lexemes.configuration(connection, collection, NOTES[0]) == "english"


def test_documents_of_another_collection_do_not_decide(connection: Connection) -> None:
    add_document(connection, "german")
    assert lexemes.configuration(connection, collection_of(connection) + 1, NOTES[0]) == "english"


@pytest.mark.parametrize(("words", "configuration"), [(19, "english"), (20, "german")])
def test_twenty_words_suffice_to_detect_a_language(connection: Connection, words: int, configuration: str) -> None:
    collection = add_document(connection, "english")
    assert lexemes.configuration(connection, collection, " ".join(GERMAN.split()[:words])) == configuration
