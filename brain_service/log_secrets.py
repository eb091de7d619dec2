"""No secret gets into a log: what looks like one is masked, and what is one of the daemon's tokens, too.

The tokens themselves are known to nobody here, only their SHA-256; a word of a line that could be a token is held
against those. Lines are few (a request that goes well writes none), so that hashing their words costs nothing.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["MASK", "know_tokens", "mask_fields", "mask_text"]

MASK = "***"

_SCHEMES = re.compile(r"(?i)\b(bearer|api-key|basic)(\s+)[^\s\"',;<>\\]{8,}")
_GOOGLE = re.compile(r"ya29\.[A-Za-z0-9_.-]+")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"]*")
_WORD = re.compile(r"[^\s\"'`,;()\[\]{}<>\\]{16,}")
_PARTS = re.compile(r"[/?&=:@]")
_SECRET_FIELDS = re.compile(r"(?i)(^|_)(authorization|password|secret|api_key|access_token|token)$")

_known: list[Callable[[], Collection[bytes]]] = []


def know_tokens(digests: Callable[[], Collection[bytes]]) -> Callable[[], None]:
    """Have `digests`, SHA-256 of tokens, asked at each line from now on; the return value forgets it again."""
    _known.append(digests)
    return lambda: _known.remove(digests)


def mask_text(text: str) -> str:
    """Return a line with what is, or looks like, a secret masked."""
    text = _SCHEMES.sub(rf"\1\2{MASK}", text)
    text = _PRIVATE_KEY.sub(MASK, _GOOGLE.sub(MASK, text))
    digests = {digest for known in _known for digest in known()}
    return _WORD.sub(lambda match: _mask_word(match[0], digests), text) if digests else text


def mask_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with the values of those that are named as secrets masked."""
    return {name: MASK if _SECRET_FIELDS.search(name) else value for name, value in fields.items()}


def _mask_word(word: str, digests: Collection[bytes]) -> str:
    if _digest(word) in digests:
        return MASK
    # An address, or a field: its parts.
    for part in {part for part in _PARTS.split(word) if len(part) >= 16} | {word.rstrip(".!?:")}:
        if _digest(part) in digests:
            word = word.replace(part, MASK)
    return word


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode(errors="replace")).digest()
