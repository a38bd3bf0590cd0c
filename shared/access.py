"""Keys and passwords kept in the data folder, and what leaves this machine, in words."""

import os
import secrets
from pathlib import Path

from shared.errors import SettingsError
from shared.settings import Settings


def key(settings: Settings) -> str:
    """The API's key: ASKFOLDER_ADMIN_KEY, or the one in the data folder, made at first need."""
    return settings.admin_key.get_secret_value() if settings.admin_key else secret(settings.data / "key")


def flower_password(settings: Settings) -> str:
    return secret(settings.data / "flower-password")


def secret(path: Path) -> str:
    """The secret in a file that only its owner may read; made, whole or not at all, when it is missing."""
    for _ in range(3):
        try:
            if value := path.read_text().strip():
                return value
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}): check who owns it.") from None
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(24) + "\n")
            os.link(fresh, path)  # fails when another process was first
        except FileExistsError:
            pass
        except OSError as error:
            raise SettingsError(
                f"{path} cannot be written ({error.strerror}): give this user the right to write there."
            ) from None
        finally:
            fresh.unlink(missing_ok=True)
    raise SettingsError(f"{path} could not be made.")


def described(settings: Settings) -> dict[str, str]:
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
