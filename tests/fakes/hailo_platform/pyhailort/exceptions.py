"""The exceptions, and how a status of the C library becomes one."""

from collections.abc import Iterator
from contextlib import contextmanager

from ._pyhailort import STATUS, HailoRTStatusException, profile


class HailoRTException(Exception):  # noqa: N818  its real name
    pass


class HailoRTTimeout(HailoRTException):
    pass


class HailoRTStreamAborted(HailoRTException):
    pass


class HailoRTStreamAbortedByUser(HailoRTException):
    pass


class HailoRTInvalidOperationException(HailoRTException):
    pass


class HailoRTInvalidArgumentException(HailoRTException):
    pass


class HailoRTNotFoundException(HailoRTException):
    pass


class HailoRTInvalidHEFException(HailoRTException):
    pass


class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
    pass


class HailoRTDriverOperationFailedException(HailoRTException):
    pass


class HailoCommunicationClosedException(HailoRTException):
    pass


class HailoRTNetworkGroupNotActivatedException(HailoRTException):
    pass


CLASSES: dict[int, type[HailoRTException]] = {
    2: HailoRTInvalidArgumentException,
    4: HailoRTTimeout,
    6: HailoRTInvalidOperationException,
    26: HailoRTInvalidHEFException,
    36: HailoRTDriverOperationFailedException,
    61: HailoRTNotFoundException,
    62: HailoCommunicationClosedException,
    63: HailoRTStreamAborted,
    69: HailoRTNetworkGroupNotActivatedException,
    93: HailoRTHEFNotCompatibleWithDevice,
}


def from_status(code: int) -> HailoRTException:
    if code in CLASSES:
        return CLASSES[code]("See hailort.log for more information")
    return HailoRTException(f"libhailort failed with error: {code} ({STATUS[code]})")


@contextmanager
def wrapped() -> Iterator[None]:
    try:
        yield
    except HailoRTStatusException as error:
        raise from_status(int(error.args[0])) from error


@contextmanager
def sometimes_wrapped() -> Iterator[None]:
    """As `wrapped`, but the 4 line lets the C library's exception through here."""
    try:
        yield
    except HailoRTStatusException as error:
        if profile().raw_status:
            raise
        raise from_status(int(error.args[0])) from error
