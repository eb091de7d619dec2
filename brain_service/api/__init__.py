"""HTTP: the application, and `serve`, which runs it."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.api.app import create_app
    from brain_service.api.serve import serve

__all__ = ["create_app", "serve"]

__getattr__ = lazy_names(__name__, {"create_app": "app", "serve": "serve"})
