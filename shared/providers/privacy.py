"""Describe which data leaves the machine."""

from pathlib import Path

from shared.settings import Settings


def describe(settings: Settings) -> dict[str, str]:
    """Sentences for people: which embedder and answerer are on, and what leaves this machine."""
    model = settings.embedding_model
    embedder = {
        "local": f"local, {Path(model).name if model else 'all-MiniLM-L6-v2'}",
        "openai": f"OpenAI {model or 'text-embedding-3-small'}",
        "voyage": f"Voyage {model or 'voyage-4'}",
    }[settings.embedder]
    where = {"openai": settings.openai_base_url or "OpenAI", "voyage": settings.voyage_base_url or "Voyage"}.get(
        settings.embedder
    )
    leaves = [f"all texts and questions, to {where}"] if where else []
    if settings.context == "claude":
        leaves.append(
            f"all texts, to {settings.anthropic_base_url or 'Anthropic'}, where {settings.context_model} writes contexts for their chunks"
        )
    if settings.answers_with_claude():
        leaves.append(f"questions and the passages found for them, to {settings.anthropic_base_url or 'Anthropic'}")
    reranker = {"voyage": settings.voyage_base_url or "Voyage", "claude": settings.anthropic_base_url or "Anthropic"}
    if where := reranker.get(settings.reranker):
        leaves.append(f"questions and the first 50 passages found for each, to {where}, to be reranked")
    return {
        "inbox": str(settings.inbox),
        "embedder": embedder,
        "answerer": f"Claude, {settings.anthropic_model}"
        if settings.answers_with_claude()
        else "extractive: sentences quoted from the documents",
        "leaves": "; ".join(leaves) or "nothing",
    }
