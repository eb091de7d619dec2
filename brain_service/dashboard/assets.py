"""The page's files, read once, and the headers that keep it to itself."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from brain_service.errors import ConfigError

__all__ = ["ASSET_PATHS", "PAGE_HEADERS", "Asset", "load_assets"]

_FOLDER = Path(__file__).parent

_FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/dashboard/app.js": ("app.js", "text/javascript; charset=utf-8"),
        "/dashboard/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
        "/dashboard/icon.svg": ("icon.svg", "image/svg+xml"),
        "/dashboard/live.js": ("live.js", "text/javascript; charset=utf-8"),
        "/dashboard/style.css": ("style.css", "text/css; charset=utf-8"),
    }
)

ASSET_PATHS = frozenset(_FILES)
"""What anybody may load: the page shows nothing before it has a token, where tokens are asked for."""

PAGE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        # Nothing from elsewhere, nothing inline, in no frame, and no text that becomes markup.
        "Content-Security-Policy": (
            "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        # Asked for again at each load, so that an update of the daemon is seen at once; unchanged costs a 304.
        "Cache-Control": "no-cache",
    }
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it goes out; `etag` is made from its content."""

    body: bytes
    media_type: str
    etag: str


def load_assets(folder: Path = _FOLDER) -> Mapping[str, Asset]:
    """Read every file of the page; by the path that it is served at.

    Raises:
        ConfigError: one is missing: the installation is not whole.
    """
    found = {}
    for path, (name, media_type) in _FILES.items():
        try:
            body = (folder / name).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read {folder / name}: {error.strerror}; install the program again"
            ) from error
        found[path] = Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found
