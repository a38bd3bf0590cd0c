"""Nightly backup of the club's photos."""

RETENTION_DAYS = 35  # older archives are deleted


def archive_name(day: str) -> str:
    """The archive of a day is called photos-DAY.tar.zst and lies in /srv/archive."""
    return f"/srv/archive/photos-{day}.tar.zst"
