"""Every byte of a dataset version held against what is known of it; nothing stops at the first damage.

Shards are held against the manifest's sizes and SHA-256; each record against its two CRCs, its own SHA-256, the
spec and the manifest's entry; the files of TFDS and the statistics against what manifest and records say.

What has nothing to be held against stays unseen: names and hashes of capture files in the manifest, what was
quarantined, and the free text that describes the dataset to TFDS. A change there alters no episode.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.datasets.verify.damage import Damage, VerifyReport
    from brain_service.datasets.verify.version import verify_dataset

__all__ = ["Damage", "VerifyReport", "verify_dataset"]

__getattr__ = lazy_names(__name__, {"Damage": "damage", "VerifyReport": "damage", "verify_dataset": "version"})
