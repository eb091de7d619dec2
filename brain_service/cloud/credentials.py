"""Who this robot is towards Google, and a connection that says so: google-auth over requests.

Order: none towards an emulator (a loopback address over http), then `cloud.credentials_file`, then Google's own
search (Application Default Credentials). Nothing is asked over the network before the first request.
Source: https://cloud.google.com/docs/authentication/application-default-credentials.
"""

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from brain_service.errors import ConfigError
from brain_service.settings import CloudSettings, child_environment

if TYPE_CHECKING:
    import requests
    from google.auth.credentials import Credentials

__all__ = ["GOOGLE_STORAGE", "authorized_session", "credentials", "is_emulator", "storage_endpoint"]

GOOGLE_STORAGE = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_NEXT = (
    "run 'gcloud auth application-default login', or set cloud.credentials_file to a service account's JSON key"
)


def storage_endpoint(settings: CloudSettings) -> str:
    """Return where Cloud Storage is: the setting, else STORAGE_EMULATOR_HOST as Google's clients read it."""
    emulator = child_environment({}).get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    return (settings.storage_endpoint or emulator or GOOGLE_STORAGE).rstrip("/")


def is_emulator(endpoint: str) -> bool:
    """Tell whether an address is http on this machine's loopback interface: no token is ever sent there."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme != "http":
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(settings: CloudSettings, endpoint: str | None = None) -> "Credentials":
    """Return what signs requests to `endpoint` (default: Cloud Storage). Reads files; may ask the metadata server.

    Raises:
        ConfigError: there are none, or the file holds none; says where to get them. Also for an address that is
            neither https nor this machine.
    """
    from google import auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import GoogleAuthError

    where = endpoint or storage_endpoint(settings)
    if is_emulator(where):
        return AnonymousCredentials()
    if urlsplit(where).scheme != "https":
        raise ConfigError(
            f"cloud endpoint {where!r} is neither https nor http on this machine: a token would travel in the "
            "clear; use https",
            field="cloud",
        )
    try:
        if settings.credentials_file is None:
            found, _ = auth.default(scopes=_SCOPES)
            return found
        return _from_file(settings)
    except (GoogleAuthError, OSError, ValueError) as error:
        source = settings.credentials_file or "where Google's libraries look"
        raise ConfigError(f"no usable credentials in {source}: {error}; {_NEXT}", field="cloud") from error


def _from_file(settings: CloudSettings) -> "Credentials":
    import json
    import warnings

    from google import auth

    assert settings.credentials_file is not None
    path = settings.credentials_file.expanduser()
    info: Any = json.loads(path.read_bytes())
    if not isinstance(info, dict):
        raise ValueError("it holds no JSON object")
    with warnings.catch_warnings():
        # It warns of files from strangers; this one the robot's owner named in the settings.
        warnings.simplefilter("ignore")
        found, _ = auth.load_credentials_from_dict(info, scopes=_SCOPES)
    return found


def authorized_session(settings: CloudSettings, endpoint: str) -> "requests.Session":
    """Return a session whose requests to `endpoint` carry this robot's token; renewed by itself when it ends.

    Its calls raise exceptions of requests and google-auth: make them inside `answers.reaching`. One thread at a
    time may use it.

    Raises:
        ConfigError: there are no credentials; says where to get them.
    """
    from google.auth.transport.requests import AuthorizedSession

    if not is_emulator(endpoint):
        return AuthorizedSession(credentials(settings, endpoint))
    # Nobody's token cannot be renewed, whatever the answer is.
    session = AuthorizedSession(credentials(settings, endpoint), refresh_status_codes=())
    # A proxy for the world outside must not be asked for this machine.
    session.trust_env = False
    return session
