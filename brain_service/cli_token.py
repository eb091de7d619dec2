"""The token with which a command asks a daemon."""

from pathlib import Path

from brain_service.errors import ConfigError

__all__ = ["read_token"]


def read_token(path: Path | None) -> str:
    """Return the first word of the file, nothing without one: a line of the daemon's own tokens file will do.

    Raises:
        ConfigError: it cannot be read, or begins with no token.
    """
    if path is None:
        return ""
    try:
        words = path.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text; give a file that begins with a token") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a file that begins with a token"
        ) from error
    if not words or words[0].startswith("#"):
        raise ConfigError(f"{path} begins with no token; give a file that does")
    if not (words[0].isascii() and words[0].isprintable()):
        raise ConfigError(f"the token of {path} has characters outside ASCII; no daemon takes such a one")
    return words[0]
