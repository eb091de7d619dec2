"""`python -m brain_service` is `brain`."""

import sys

from brain_service.cli import main

sys.exit(main())
