"""Describe which data is sent to other services."""

from pathlib import Path

from shared.settings import Settings


def describe(settings: Settings) -> dict[str, str]:
    """Describe the folder, the embedder, the answerer, and the data sent to other services ("leaves")."""
    model, claude = settings.embedding_model, settings.answers_with_claude()
    openai, voyage = settings.openai_base_url or "OpenAI", settings.voyage_base_url or "Voyage"
    anthropic = settings.anthropic_base_url or "Anthropic"
    embedder, service = {
        "local": (f"local, {Path(model).name if model else 'all-MiniLM-L6-v2'}", ""),
        "openai": (f"OpenAI {model or 'text-embedding-3-small'}", openai),
        "voyage": (f"Voyage {model or 'voyage-4'}", voyage),
    }[settings.embedder]
    answerer = f"Claude, {settings.anthropic_model}" if claude else "extractive: sentences quoted from the documents"
    reranker = {"voyage": voyage, "claude": anthropic}.get(settings.reranker)
    sent = (
        (service, f"all texts and questions, to {service}"),
        (
            settings.context == "claude",
            f"all texts, to {anthropic}, where {settings.context_model} writes contexts for their chunks",
        ),
        (claude, f"questions and the passages found for them, to {anthropic}"),
        (reranker, f"questions and the first 50 passages found for each, to {reranker}, to be reranked"),
    )
    return {
        "inbox": str(settings.inbox),
        "embedder": embedder,
        "answerer": answerer,
        "leaves": "; ".join(data for is_sent, data in sent if is_sent) or "none",
    }
