"""The benchmark of searching works at a tiny size. Its figures are meaningful on an idle machine only."""

from pathlib import Path

import pytest

from bench import chunks, growth, search
from shared.settings import ROOT


def test_the_search_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "EMBEDDED", 60)
    monkeypatch.setattr(chunks, "QUESTIONS", 5)
    monkeypatch.setattr(search, "SMALL", 100)
    small, large = search.run([100, 300], [ROOT / "docs"], seconds=0.3)
    assert (small.chunks, large.chunks) == (100, 300)
    assert large.real < 300  # the documentation is shorter, so some chunks were generated
    for result in (small, large):
        assert {
            "bare HNSW",
            "hybrid",
            "dense",
            "lexical",
            "textbook",
            "POST /search, question cached",
        } <= result.times.keys()
        assert all(0 < median <= most for median, most in result.times.values())
        assert result.a_second["hybrid, 8 clients"] > 0
        assert result.shares["overlap@10 with exhaustive BM25"] == 1.0  # all of so few chunks are compared
        assert result.shares["recall@10, dense"] > 0.9
    assert large.shares["recall@10 of 1 in 10 chunks"] > 0.9
    assert "recall@10 of 1 in 100 chunks" not in large.shares  # that part has only three chunks
    assert small.shares["recall@10 after five re-indexings"] > 0.9
    assert small.a_second["chunks stored, with all indexes"] > 0

    page = tmp_path / "performance.md"
    page.write_text("# Performance\n")
    growth.write(growth.lines([small, large]), growth.plot([small, large]), page)
    once = page.read_text()
    growth.write(growth.lines([small, large]), growth.plot([small, large]), page)
    assert page.read_text() == once
    assert "| 100 chunks | 300 chunks (" in once
    assert (tmp_path / "performance.svg").read_text().count("<polyline") == 6
