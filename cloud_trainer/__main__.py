"""`python -m cloud_trainer` is `cloud-trainer`."""

import sys

from cloud_trainer.cli import main

sys.exit(main())
