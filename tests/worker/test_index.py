"""The comparison of a document's rows with its new inputs, without a database."""

from dataclasses import replace

from shared.models import Chunk
from worker.indexing.index import Changes, Input, Row, compare


def chunk(ordinal: int, content: str, heading: str = "Birds") -> Chunk:
    return Chunk(ordinal, content, (heading,), None, ordinal * 100, ordinal * 100 + len(content))


def inputs(*contents: str, heading: str = "Birds") -> list[Input]:
    return [(chunk(n, content, heading), content.encode()) for n, content in enumerate(contents)]


def rows(*contents: str) -> list[Row]:
    """Return rows with the ids 10, 11, 12 …"""
    return [Row(10 + n, part, input_hash) for n, (part, input_hash) in enumerate(inputs(*contents))]


def test_unchanged_rows_need_no_changes() -> None:
    assert compare(rows("gull", "heron"), inputs("gull", "heron"), new_text=False) == Changes()


def test_new_text_makes_all_lexical_rows_stale() -> None:
    assert compare(rows("gull", "heron"), inputs("gull", "heron"), new_text=True) == Changes(stale=[10, 11])


def test_the_first_time_everything_is_new() -> None:
    assert compare([], inputs("gull", "heron"), new_text=True) == Changes(new=inputs("gull", "heron"))


def test_shifted_rows_keep_their_ids() -> None:
    after = inputs("tern", "gull", "heron")
    changes = compare(rows("gull", "heron"), after, new_text=False)
    assert changes == Changes(new=after[:1], shifted=[(10, after[1][0]), (11, after[2][0])])


def test_edited_chunk_is_replaced() -> None:
    after = inputs("gull", "grey heron")
    assert compare(rows("gull", "heron"), after, new_text=False) == Changes(new=after[1:], gone=[11])


def test_same_content_with_another_vector_is_replaced() -> None:
    after = [(chunk(0, "gull"), b"with a context")]
    assert compare(rows("gull"), after, new_text=False) == Changes(new=after, gone=[10])


def test_a_different_context_alone_is_no_change() -> None:
    after = [(replace(chunk(0, "gull"), context="On the coast."), b"gull")]
    assert compare(rows("gull"), after, new_text=False) == Changes()


def test_a_changed_heading_shifts_and_renews_the_lexical_row() -> None:
    after = inputs("gull", heading="Seabirds")
    assert compare(rows("gull"), after, new_text=False) == Changes(shifted=[(10, after[0][0])], stale=[10])


def test_duplicated_contents_are_kept_in_their_order() -> None:
    before = rows("gull", "gull", "heron", "gull")
    assert compare(before, inputs("gull", "gull", "heron", "gull"), new_text=False) == Changes()
    after = inputs("gull", "heron")
    assert compare(before, after, new_text=False) == Changes(shifted=[(12, after[1][0])], gone=[11, 13])
    after = inputs("gull", "gull", "heron", "gull", "gull")
    assert compare(before, after, new_text=False) == Changes(new=after[4:])


def test_removed_chunks_are_deleted() -> None:
    assert compare(rows("gull", "heron"), [], new_text=True) == Changes(gone=[10, 11])


def test_damaged_row_is_written_again() -> None:
    complete_row, damaged = rows("gull", "heron")
    after = inputs("gull", "heron")
    assert compare([complete_row, replace(damaged, complete=False)], after, new_text=False) == Changes(
        new=after[1:], gone=[11]
    )
