"""Access to the app: key and cookie, Host and Origin, security headers."""

import hmac
from urllib.parse import urlsplit

from flask import (
    Response,
    current_app,
    render_template,
    request,
)

from api.problems import problem
from shared.settings import Settings

COOKIE = "askfolder_key"

PUBLIC_PATHS = {"/healthz", "/readyz"}


# --- who may come in -------------------------------------------------------------------------------------------------


def allowed_hosts(settings: Settings) -> set[str]:
    """Names that a request may give as its host: a page of another name that points here (DNS rebinding) gets nothing."""
    hosts = {"127.0.0.1", "localhost", "::1", settings.host} | {
        name.strip() for name in settings.allowed_hosts.split(",")
    }
    return {host.lower() for host in hosts if host and host not in ("0.0.0.0", "::")}


def authorize() -> Response | None:
    hosts: set[str] = current_app.extensions["askfolder.hosts"]
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    if host not in hosts:
        return problem(
            400, "Foreign host", f"This server does not answer to the name {host!r}; add it to ASKFOLDER_ALLOWED_HOSTS."
        )
    origin = request.headers.get("Origin")
    if origin and origin != "null" and urlsplit(origin).netloc.lower() != request.headers["Host"].lower():
        return problem(403, "Foreign origin", f"A page of {origin} may not use this server.")
    if origin == "null":
        return problem(403, "Foreign origin", "A page without an origin may not use this server.")
    if request.path in PUBLIC_PATHS:
        return None
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    if request.path == "/" and "key" in request.args:
        given = request.args["key"]
    if hmac.compare_digest(given.encode("utf-8", "replace"), current_app.extensions["askfolder.key"].encode()):
        return None
    if request.path == "/" and request.accept_mimetypes.accept_html:
        return Response(render_template("locked.html"), 401, {"WWW-Authenticate": "Bearer"})
    answer = problem(
        401,
        "No key",
        "Send the header Authorization: Bearer KEY, with the key that `askfolder up` keeps in .askfolder/key.",
    )
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def security_headers(response: Response) -> Response:
    response.headers.update(
        {
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    response.headers.setdefault("Cache-Control", "no-store")
    return response
