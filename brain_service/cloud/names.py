"""Names of places and of files in them: what `gs://bucket/path` means, and which names lead nowhere else."""

from pathlib import Path

from brain_service.errors import InvalidError

__all__ = ["GCS", "check_name", "split_place"]

GCS = "gs://"
# Google's bound on an object's name.
_MOST_BYTES = 1024


def split_place(text: str | Path) -> tuple[str, str] | None:
    """Return bucket and path of a `gs://` place, None of a local one.

    Raises:
        InvalidError: the text has another scheme, or names no bucket.
    """
    place = str(text)
    if isinstance(text, Path) and place.startswith("gs:/"):
        # A Path takes the second slash away.
        place = GCS + place.removeprefix("gs:/").lstrip("/")
    if not place.startswith(GCS):
        if "://" in place:
            raise InvalidError(f"{place}: places are local paths or gs://bucket/path", field="place")
        return None
    bucket, _, path = place.removeprefix(GCS).partition("/")
    if not bucket:
        raise InvalidError(f"{place} names no bucket; use gs://bucket/path", field="place")
    path = path.strip("/")
    if path:
        check_name(path, f"{GCS}{bucket}")
    return bucket, path


def check_name(name: str, place: str) -> str:
    """Return a file's name relative to a place if it stays inside it and both a bucket and a disk can hold it.

    Raises:
        InvalidError: it is empty, absolute, has `.`, `..` or empty parts, characters that are not printable, or is
            too long.
    """
    parts = name.split("/")
    good = all(part not in ("", ".", "..") for part in parts) and name.isprintable() and "\\" not in name
    if not good or len(name.encode(errors="surrogatepass")) > _MOST_BYTES:
        raise InvalidError(
            f"{place}: {name[:100]!r} is no name of a file there: printable characters, at most {_MOST_BYTES} "
            "bytes, no part empty, '.' or '..'; rename it",
            field="name",
        )
    return name
