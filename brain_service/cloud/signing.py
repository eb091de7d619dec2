"""Ed25519 signatures of bundles: who holds the private key vouches for what a robot may serve by itself.

`manifest.sig` signs the very bytes of `manifest.json` beside it. The manifest lists every file with its SHA-256
and names the model by a hash of its config, so a good signature vouches for all of them. A bundle that got another
form since has another manifest and must be signed again. Source: RFC 8032; keys are PEM (RFC 8410).
"""

import os
from pathlib import Path

from brain_service.durable import write_atomic
from brain_service.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError, UnavailableError

__all__ = ["PRIVATE_KEY", "PUBLIC_KEY", "SIGNATURE_FILE", "make_keys", "sign_bundle", "verify_signature"]

SIGNATURE_FILE = "manifest.sig"
PRIVATE_KEY = "bundle_key.pem"
PUBLIC_KEY = "bundle_key.pub.pem"
_MANIFEST = "manifest.json"
# So that a signature made for something else never fits.
_PURPOSE = b"continuon-brain/bundle-manifest/1\n"


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a key pair in a folder and return the paths of the private key (mode 0600) and the public one.

    Raises:
        ConflictError: there is a key already; none is ever replaced.
        UnavailableError: the folder cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    open_key = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never readable by others, not even for a moment, and never in another key's place.
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        write_atomic(public, open_key)
    except FileExistsError as error:
        raise ConflictError(
            f"{private} is there already; robots that trust it would no longer know you: choose another folder"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"cannot write keys to {folder}: {error.strerror}; check its permissions"
        ) from error
    return private, public


def sign_bundle(bundle: Path | bytes, private_key_path: Path) -> bytes:
    """Sign a bundle's folder, writing `manifest.sig` into it, or the bytes of a manifest; return the signature.

    The folder is taken as it is: verify it before.

    Raises:
        NotFoundError: there is no manifest in the folder.
        ConfigError: the key cannot be read, or is no Ed25519 private key.
        UnavailableError: the signature cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = _load(private_key_path, private=True)
    assert isinstance(key, Ed25519PrivateKey)
    if isinstance(bundle, bytes):
        return bytes(key.sign(_PURPOSE + bundle))
    try:
        manifest = (bundle / _MANIFEST).read_bytes()
    except OSError as error:
        raise NotFoundError(f"no bundle at {bundle}: {error.strerror}") from error
    signature = bytes(key.sign(_PURPOSE + manifest))
    try:
        write_atomic(bundle / SIGNATURE_FILE, signature)
    except OSError as error:
        raise UnavailableError(f"cannot sign {bundle}: {error.strerror}; check its permissions") from error
    return signature


def verify_signature(
    manifest: bytes, signature: bytes | None, public_key_path: Path, place: str = "bundle"
) -> None:
    """Check that the holder of the private key signed exactly these bytes; `place` stands for them in errors.

    Raises:
        ForbiddenError: there is no signature, or it is another key's or another manifest's.
        ConfigError: the public key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = _load(public_key_path, private=False)
    assert isinstance(key, Ed25519PublicKey)
    if signature is None:
        raise ForbiddenError(
            f"{place} has no {SIGNATURE_FILE}, and cloud.public_key wants one; make it with 'brain keys --sign'"
        )
    try:
        key.verify(signature, _PURPOSE + manifest)
    except InvalidSignature as error:
        raise ForbiddenError(
            f"{place}: {SIGNATURE_FILE} is not {public_key_path}'s signature of this {_MANIFEST}; it is another "
            "key's, or another model's or config's. Nothing of it is used"
        ) from error


def _load(path: Path, *, private: bool) -> object:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    kind = "private" if private else "public"
    try:
        data = path.expanduser().read_bytes()
        key = (
            serialization.load_pem_private_key(data, None) if private else serialization.load_pem_public_key(data)
        )
        wanted = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
        if not isinstance(key, wanted):
            raise ValueError("it is of another kind")
    except OSError as error:
        raise ConfigError(f"cannot read the {kind} key {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no Ed25519 {kind} key in PEM: {error}; make a pair with 'brain keys --output-dir'"
        ) from error
    return key
