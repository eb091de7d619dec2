"""Which model serves: load, verify, warm and check a new one beside the old, swap, keep the old as rollback."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, ConflictError, UnavailableError
from brain_service.inference.model_store import ModelStore
from brain_service.inference.served_model import ServedModel
from brain_service.settings import InferenceSettings

__all__ = ["Fleet"]

log = logging.getLogger(__name__)


class Fleet:
    """The active model, the one before it, and older ones that still have sessions.

    The swap is one assignment on the event loop, so it falls between two requests: a session is on one model
    from its first step to its last.
    """

    def __init__(self, models_dir: Path, settings: InferenceSettings, cache_dir: Path) -> None:
        self.active: ServedModel | None = None
        self.previous: ServedModel | None = None
        self.loading: str | None = None
        self.error: str | None = None
        self.store = ModelStore(models_dir)
        self._settings = settings
        self._cache_dir = cache_dir
        self._loaded: dict[str, ServedModel] = {}
        self._lock = asyncio.Lock()

    async def load_active(self) -> None:
        """Load the model that `models/active` names, if any; what goes wrong is kept in `error`."""
        async with self._lock:
            self.loading = await asyncio.to_thread(self.store.linked, "active")
            if self.loading is None:
                return
            try:
                self.active = await self._obtain(self.loading)
            except BrainError as error:
                self.error = f"model {self.loading} could not be loaded: {error.detail}"
                log.error("%s", self.error)
            finally:
                self.loading = None

    def require_active(self) -> ServedModel:
        """Return the active model.

        Raises:
            UnavailableError: there is none; the message says why and what to do.
        """
        if self.active is not None:
            return self.active
        if self.loading is not None:
            raise UnavailableError(f"model {self.loading} is being loaded; retry in a few seconds")
        if self.error is not None:
            raise UnavailableError(f"{self.error}; activate another (POST /models/{{id}}/activate)")
        raise UnavailableError("no model yet: record episodes, then POST /pipeline or /train")

    async def activate(self, model_id: str) -> None:
        """Serve `model_id` to sessions that begin from now on. On failure what served before goes on.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: the bundle does not verify or fails the golden check.
            UnavailableError: no backend runs it, or the links cannot be written.
        """
        async with self._lock:
            if self.active is not None and self.active.model_id == model_id:
                return
            # The models before stay in service while this one loads.
            model = await self._obtain(model_id)
            await self._swap(model)

    async def rollback(self) -> str:
        """Serve the previous model again, at once if it is still loaded, and return its id.

        Raises:
            ConflictError: there is no previous model.
            NotFoundError, CorruptDataError, UnavailableError: as for `activate`.
        """
        async with self._lock:
            model = self.previous
            if model is None:
                model_id = await asyncio.to_thread(self.store.linked, "previous")
                if model_id is None or (self.active is not None and self.active.model_id == model_id):
                    raise ConflictError("no previous model to roll back to; activate one by its id")
                model = await self._obtain(model_id)
            await self._swap(model)
            return model.model_id

    async def drop_drained(self) -> None:
        """Stop models that are neither active nor the rollback and have no session left."""
        for model_id, model in list(self._loaded.items()):
            if self._lock.locked():
                # An activation may be about to use this very model.
                return
            if model is not self.active and model is not self.previous and model.sessions == 0:
                del self._loaded[model_id]
                await model.close()

    async def describe(self) -> list[dict[str, Any]]:
        """Return every bundle on disk, newest first, with its role and, where loaded, how it serves and why."""
        summaries = await asyncio.to_thread(self.store.summaries)
        return [summary | self._state(summary["model_id"]) for summary in summaries]

    async def describe_one(self, model_id: str) -> dict[str, Any]:
        """Return one bundle's manifest, its role and, where loaded, how it serves and why.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: its manifest cannot be.
        """
        manifest = await asyncio.to_thread(self.store.manifest, model_id)
        return {"model_id": model_id, "manifest": manifest.to_json()} | self._state(model_id)

    def loaded(self) -> list[dict[str, Any]]:
        """Return how each loaded model serves."""
        return [model.status() | {"role": self._role(model_id)} for model_id, model in self._loaded.items()]

    async def close(self) -> None:
        """Stop every worker."""
        self.active = self.previous = None
        models = list(self._loaded.values())
        self._loaded.clear()
        await asyncio.gather(*(model.close() for model in models))

    async def _obtain(self, model_id: str) -> ServedModel:
        model = self._loaded.get(model_id)
        if model is None:
            path = await asyncio.to_thread(self.store.path, model_id)
            model = await ServedModel.load(path, self._settings, self._cache_dir)
            self._loaded[model_id] = model
        return model

    async def _swap(self, model: ServedModel) -> None:
        if not model.ready:
            raise UnavailableError(
                f"the worker of model {model.model_id} is being started again ({model.last_error}); "
                "what serves now goes on, retry in a few seconds"
            )
        before = self.active
        await asyncio.to_thread(self.store.point, model.model_id, before.model_id if before else None)
        self.active, self.previous, self.error = model, before, None
        model.keep_standby(True)
        if before is not None:
            before.keep_standby(False)
        log.info("model %s serves, %s before", model.model_id, before.model_id if before else "none")

    def _role(self, model_id: str) -> str | None:
        for role, model in (("active", self.active), ("previous", self.previous)):
            if model is not None and model.model_id == model_id:
                return role
        return None

    def _state(self, model_id: str) -> dict[str, Any]:
        model = self._loaded.get(model_id)
        return {"role": self._role(model_id), "serving": model.status() if model else None}
