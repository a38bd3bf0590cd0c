"""The API's key and Flower's password, in files of the data folder."""

import os
import secrets
from pathlib import Path

from shared.errors import SettingsError
from shared.settings import Settings


def key(settings: Settings) -> str:
    """Return ASKFOLDER_ADMIN_KEY, or the key in the data folder, which is created if it is missing."""
    return settings.admin_key.get_secret_value() if settings.admin_key else secret(settings.data / "key")


def flower_password(settings: Settings) -> str:
    return secret(settings.data / "flower-password")


def secret(path: Path) -> str:
    """Return the secret in a file; create the file, readable by its owner only, if it is missing or empty.

    Processes that start at once get the same secret.
    """
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
    raise SettingsError(f"{path} cannot be created: check who owns it.")
