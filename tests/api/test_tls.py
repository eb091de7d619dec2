"""TLS on TCP: what a certificate of one's own gives, and each pair that is refused."""

import datetime
import ipaddress
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.api.test_serve import assert_refusal, serve
from tests.processes import free_port
from tests.systemd.harness import supervised


def certificate(folder: Path, name: str = "robot", passphrase: bytes = b"") -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 and its key, as an owner would with openssl."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    return cert_path, key_path


def test_tcp_is_encrypted_and_the_unix_socket_is_not(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls = {"BRAIN_TLS_CERTFILE": str(cert), "BRAIN_TLS_KEYFILE": str(key)}
    with supervised(tmp_path / "brain", settings=tls) as running:
        running.wait_ready()
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=running.url.replace("http:", "https:"), verify=context) as http:
            assert http.get("/livez").status_code == 200
            episode = http.post("/episodes", json={}).json()["episode_id"]
            steps = [{"observation": {"x": [float(n)]}, "action": {"u": [0.5]}} for n in range(2000)]
            assert http.post(f"/episodes/{episode}/steps", json=steps).status_code == 200
            assert len(http.get(f"/episodes/{episode}/steps", params={"limit": 1000}).json()["steps"]) == 1000
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.url}/livez")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{running.url.replace('http:', 'https:')}/livez")
        with httpx.Client(transport=httpx.HTTPTransport(uds=running.uds), base_url="http://brain") as http:
            assert http.get("/livez").status_code == 200
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", running.port)) as plain, pytest.raises(ssl.SSLError):
            old.wrap_socket(plain)
        running.process.terminate()
        assert running.process.wait(60) == 0
        assert "https://127.0.0.1" in running.log_path.read_text()
        assert "Traceback" not in running.log_path.read_text()


@pytest.mark.long
def test_a_pair_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    _, other = certificate(tmp_path, "other")
    _, locked = certificate(tmp_path, "locked", b"passphrase")
    (tmp_path / "text").write_text("no PEM")
    cases = [
        (cert, None, ("tls_keyfile", "together")),
        (cert, other, ("no pair", str(other))),
        (cert, locked, ("passphrase",)),
        (tmp_path / "text", key, ("not PEM", str(tmp_path / "text"))),
        (tmp_path / "nowhere", key, ("tls_certfile", "nowhere", "No such file")),
        (cert, tmp_path, ("tls_keyfile", "directory")),
    ]
    for certfile, keyfile, words in cases:
        env = {"BRAIN_TLS_CERTFILE": str(certfile)} | ({"BRAIN_TLS_KEYFILE": str(keyfile)} if keyfile else {})
        assert_refusal(serve("--data-dir", str(tmp_path / "b"), "--port", str(free_port()), **env), *words)
