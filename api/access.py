"""Access to the app: key and cookie, Host and Origin, security headers."""

import hmac
from urllib.parse import urlsplit

from flask import Response, render_template, request

from api.problems import problem
from api.resources import resources
from shared.settings import Settings

COOKIE = "askfolder_key"
PUBLIC_PATHS = {"/healthz", "/readyz"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """Host names that requests may use. Any other name may be another site's that points here (DNS rebinding)."""
    hosts = {"127.0.0.1", "localhost", "::1", settings.host, *map(str.strip, settings.allowed_hosts.split(","))}
    return frozenset(host.lower() for host in hosts if host and host not in ("0.0.0.0", "::"))


def authorize() -> Response | None:
    """Refuse a request with a foreign Host or Origin, or without the key. None if it may pass."""
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    if host not in resources().hosts:
        detail = f"This server does not answer to the name {host!r}; add it to ASKFOLDER_ALLOWED_HOSTS."
        return problem(400, "Foreign host", detail)
    origin = request.headers.get("Origin")
    if origin == "null":
        return problem(403, "Foreign origin", "A page without an origin may not use this server.")
    if origin and urlsplit(origin).netloc.lower() != request.headers["Host"].lower():
        return problem(403, "Foreign origin", f"A page of {origin} may not use this server.")
    if request.path in PUBLIC_PATHS:
        return None
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
    if request.path == "/" and "key" in request.args:
        key = request.args["key"]
    if hmac.compare_digest(key.encode("utf-8", "replace"), resources().key.encode()):
        return None
    if request.path == "/" and request.accept_mimetypes.accept_html:
        refusal = Response(render_template("locked.html"), 401)
    else:
        detail = "Send the header Authorization: Bearer KEY, with the key that `askfolder up` keeps in .askfolder/key."
        refusal = problem(401, "No key", detail)
    refusal.headers["WWW-Authenticate"] = "Bearer"
    return refusal


def security_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response
