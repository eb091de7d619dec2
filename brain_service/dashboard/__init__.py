"""The operator's page: its hand-written files, and the snapshot of everything that it shows.

No framework, no build step, nothing from elsewhere. The routes are in `brain_service.api.dashboard`.
"""

from brain_service.dashboard.assets import ASSET_PATHS, PAGE_HEADERS, Asset, load_assets
from brain_service.dashboard.curve import LearningCurve
from brain_service.dashboard.state import State, state_of

__all__ = [
    "ASSET_PATHS",
    "PAGE_HEADERS",
    "Asset",
    "LearningCurve",
    "State",
    "load_assets",
    "state_of",
]
