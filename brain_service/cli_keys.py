"""`brain keys`: make the key pair that vouches for bundles, and sign with it."""

import argparse
from pathlib import Path

from brain_service.terminal import say

__all__ = ["add_keys_command"]

_ABOUT = """\
Make an Ed25519 key pair for bundles: DIR/bundle_key.pem (private, readable by you alone) and
DIR/bundle_key.pub.pem. With --sign, sign a bundle with the private key that is there: BUNDLE/manifest.sig.

A robot with cloud.public_key takes no downloaded model without a good signature. A signature is of the manifest as
it is: sign again after adding a form to a bundle.
"""
_EXAMPLES = """\
examples:
  brain keys --output-dir ./keys
  brain keys --output-dir ./keys --sign ./models/3f9a1c0d2b4e5f60
  brain serve --config brain.toml            # with [cloud] public_key = "keys/bundle_key.pub.pem"
"""


def add_keys_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `keys` to the parser of `brain`."""
    added = commands.add_parser(
        "keys",
        help="Make a key pair for bundles, or sign a bundle with it.",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=_run)
    added.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="where the keys are")
    added.add_argument("--sign", type=Path, metavar="BUNDLE", help="sign this bundle's folder; make no key")


def _run(options: argparse.Namespace) -> int:
    from brain_service.cloud.signing import PRIVATE_KEY, SIGNATURE_FILE, make_keys, sign_bundle

    if options.sign is None:
        private, public = make_keys(options.output_dir)
        say(f"private: {private}  (whoever has it vouches for models; keep it off the robots)")
        say(f"public:  {public}  (for robots: cloud.public_key)")
        return 0
    from brain_service.export.bundle import Bundle

    bundle = Bundle.open(options.sign)
    sign_bundle(bundle.path, options.output_dir / PRIVATE_KEY)
    say(f"signed model {bundle.manifest.model_id}: {bundle.path / SIGNATURE_FILE}")
    return 0
