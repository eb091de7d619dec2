"""Parameters of an Open Inference request: a sequence is a session, and what else may be asked of one step.

A client's sequence ids are its own: the session's id is a hash over whoever asks (its token, or without tokens the
address that it comes from), and the sequence id with its kind, since 7 and "7" are two of them. The hash has a key
of this process, or who may list sessions could try out tokens against it.

Source: Triton's sequence extension (`sequence_id`, `sequence_start`, `sequence_end`).
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brain_service.errors import InvalidError

__all__ = ["StepCall", "read_call"]

MAX_ID_BYTES = 256
_KEY = secrets.token_bytes(32)
_MICROSECONDS_A_MS = 1e3


@dataclass(frozen=True, slots=True)
class StepCall:
    """One step of a sequence: `start` makes its session or puts it at zero, `end` ends it after the answer.

    `binary` is whether outputs go as bytes unless they say otherwise.
    """

    sequence_id: int | str
    session_id: str
    start: bool
    end: bool
    step: int | None
    deadline_ms: float | None
    record: str | None
    binary: bool


def read_call(parameters: Mapping[str, Any], caller: str) -> StepCall:
    """Read a request's parameters; `caller` is whose sequence ids they are.

    Raises:
        InvalidError: a parameter is unknown or of a wrong kind, or no sequence is named.
    """
    for name, value in parameters.items():
        if name not in _KINDS:
            raise InvalidError(
                f"parameter {name[:100]!r} is none of {', '.join(_KINDS)}", field=f"parameters/{name}"
            )
        wanted, fits = _KINDS[name]
        if not fits(value):
            raise InvalidError(
                f"parameter {name}: {str(value)[:100]!r} is no {wanted}", field=f"parameters/{name}"
            )
    sequence_id = parameters.get("sequence_id", 0)
    if sequence_id in (0, ""):
        raise InvalidError(
            "this model has a memory, so a request belongs to a sequence: give sequence_id (not 0 and not empty) "
            "with sequence_start on its first step; for a single step set sequence_start and sequence_end both",
            field="parameters/sequence_id",
        )
    if parameters.get("sequence_start") and parameters.get("step", 0) != 0:
        raise InvalidError("sequence_start begins at step 0; leave step out, or give 0", field="parameters/step")
    timeout_us = parameters.get("timeout", 0)
    return StepCall(
        sequence_id=sequence_id,
        session_id=_session_id(caller, sequence_id),
        start=parameters.get("sequence_start", False),
        end=parameters.get("sequence_end", False),
        step=parameters.get("step"),
        deadline_ms=timeout_us / _MICROSECONDS_A_MS if timeout_us else None,
        record=parameters.get("record"),
        binary=parameters.get("binary_data_output", False),
    )


def _session_id(caller: str, sequence_id: int | str) -> str:
    text = json.dumps([caller, sequence_id])
    return f"v2-{hashlib.blake2b(text.encode(), key=_KEY, digest_size=8).hexdigest()}"


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _is_sequence_id(value: Any) -> bool:
    return _is_index(value) or (isinstance(value, str) and len(value.encode()) <= MAX_ID_BYTES)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "sequence_id": (f"unsigned 64-bit integer or text of at most {MAX_ID_BYTES} bytes", _is_sequence_id),
    "sequence_start": ("truth value", _is_flag),
    "sequence_end": ("truth value", _is_flag),
    "step": ("step index, 0 for the first", _is_index),
    "timeout": ("number of microseconds", _is_index),
    "record": ("episode id", _is_text),
    "binary_data_output": ("truth value", _is_flag),
    "priority": ("unsigned integer (it changes nothing here)", _is_index),
}
