"""Which model serves: load, verify, warm and check a new one beside the old, swap, keep the old as rollback."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, ConflictError, UnavailableError
from brain_service.inference.model_store import ModelStore
from brain_service.inference.served_model import ServedModel
from brain_service.inference.starts import Record, Starts
from brain_service.settings import InferenceSettings

__all__ = ["Fleet"]

log = logging.getLogger(__name__)

_RETRY_START_S = 0.5

LEAVE_SAFE_MODE = "POST /models/{id}/activate, of this model or another, leaves safe mode"


class Fleet:
    """The active model, the one before it, and older ones that still have sessions.

    The swap is one assignment on the event loop, so it falls between two requests. `safe_mode` tells why another
    model stands in for the active one, None while none does.
    """

    def __init__(self, models_dir: Path, settings: InferenceSettings, cache_dir: Path) -> None:
        self.active: ServedModel | None = None
        self.previous: ServedModel | None = None
        self.loading: str | None = None
        self.error: str | None = None
        self.safe_mode: str | None = None
        self.starts = Starts(models_dir)
        self.store = ModelStore(models_dir)
        self._settings = settings
        self._cache_dir = cache_dir
        self._loaded: dict[str, ServedModel] = {}
        self._lock = asyncio.Lock()
        self._steady_since_s = time.monotonic()

    async def load_active(self) -> None:
        """Load the model that `models/active` names, if any; what goes wrong is kept in `error`.

        After `max_start_crashes` crashes at start, of the daemon or of the model's worker, or when the bundle is
        damaged, the last good model comes up in its place, and stays until an operator activates one.
        """
        async with self._lock:
            model_id = self.loading = await asyncio.to_thread(self.store.linked, "active")
            if model_id is None:
                return
            try:
                record = await asyncio.to_thread(self.starts.begin, model_id)
                stand_in = await asyncio.to_thread(self._stand_in, model_id)
                reason = record.safe_mode
                if reason is None:
                    reason = await self._load_or_tell(model_id, record, retry=stand_in is not None)
                if reason is not None:
                    await self._enter_safe_mode(model_id, stand_in, reason)
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

    async def activate(
        self,
        model_id: str,
        check: Callable[[ServedModel], Awaitable[None]],
        *,
        by_itself: bool = False,
    ) -> bool:
        """Serve `model_id` from now on, once `check` lets it pass; tell whether it did not serve already.

        On failure what served before goes on. With `by_itself` nobody asked for this very model: one that was
        rejected stays out.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: the bundle does not verify or fails the golden check.
            UnavailableError: no backend runs it, or the links cannot be written.
            ConflictError: it was rejected before, or `check` refuses it.
        """
        async with self._lock:
            if self.active is not None and self.active.model_id == model_id and self.safe_mode is None:
                return False
            if by_itself:
                await self._refuse_rejected(model_id, "is not activated by itself")
            # The models before stay in service while this one loads.
            model = await self._obtain(model_id)
            await check(model)
            await self._swap(model)
            return True

    async def rollback(self) -> str:
        """Serve the previous model again, at once if it is still loaded, and return its id.

        Raises:
            ConflictError: there is no previous model, or it was rejected.
            NotFoundError, CorruptDataError, UnavailableError: as for `activate`.
        """
        async with self._lock:
            model = self.previous or await self._obtain_previous()
            await self._swap(model)
            return model.model_id

    async def step_back(self, model: ServedModel) -> bool:
        """Put the previous model in the place of `model` and tell whether that still served.

        Where the previous one is loaded this waits for no disk and no activation that is under way.

        Raises:
            ConflictError: there is no previous model.
            NotFoundError, CorruptDataError, UnavailableError: it cannot serve now.
        """
        if self.previous is None:
            async with self._lock:
                self.previous = self.previous or await self._obtain_previous()
        if self.active is model and self.previous is not None:
            self._require_ready(self.previous)
            self.active, self.previous = self.previous, None
            self._share_backends()
            return True
        if self.previous is model:
            # Another one was activated meanwhile: nobody shall go back to this one.
            self.previous = None
        return False

    async def reject(self, model_id: str, evidence: str) -> None:
        """Mark a model on disk, and what serves now as the active one."""
        async with self._lock:
            try:
                await asyncio.to_thread(self.store.reject, model_id, evidence)
                if self.active is not None:
                    previous = self.previous.model_id if self.previous else None
                    await asyncio.to_thread(self.store.point, self.active.model_id, previous)
                    await asyncio.to_thread(self.starts.activated, self.active.model_id)
            except UnavailableError as error:
                log.error("the rollback holds until a restart only: %s", error.detail)

    async def drop_drained(self) -> None:
        """Stop models that are neither active nor the rollback and have no session left."""
        for model_id, model in list(self._loaded.items()):
            if self._lock.locked():
                # An activation may be about to use this very model.
                return
            if model is not self.active and model is not self.previous and model.sessions == 0:
                del self._loaded[model_id]
                await model.close()

    async def note_a_good_start(self) -> None:
        """After `healthy_after_s` without trouble, the crashes of earlier starts count no more."""
        now_s, record = time.monotonic(), self.starts.record
        if self.loading is not None or (self.active is not None and not self.active.ready):
            self._steady_since_s = now_s
        steady = now_s - self._steady_since_s >= self._settings.healthy_after_s
        if steady and record is not None and record.phase == "starting":
            await asyncio.to_thread(self.starts.healthy)

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
        rejected = (await asyncio.to_thread(self.store.rejected)).get(model_id)
        return {"model_id": model_id, "manifest": manifest.to_json(), "rejected": rejected} | self._state(model_id)

    def loaded(self) -> list[dict[str, Any]]:
        """Return how each loaded model serves."""
        return [model.status() | {"role": self._role(model_id)} for model_id, model in self._loaded.items()]

    async def close(self) -> None:
        """Stop every worker and note that the daemon was stopped and did not crash."""
        await asyncio.to_thread(self.starts.stopped)
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

    async def _obtain_previous(self) -> ServedModel:
        model_id = await asyncio.to_thread(self.store.linked, "previous")
        if model_id is None or (self.active is not None and self.active.model_id == model_id):
            raise ConflictError("no previous model to roll back to; activate one by its id")
        await self._refuse_rejected(model_id, "is not rolled back to")
        return await self._obtain(model_id)

    async def _refuse_rejected(self, model_id: str, what: str) -> None:
        mark = (await asyncio.to_thread(self.store.rejected)).get(model_id)
        if mark is not None:
            raise ConflictError(
                f"model {model_id} was rejected ({mark.get('evidence')}) and {what}; "
                f"POST /models/{model_id}/activate serves it all the same"
            )

    async def _load_or_tell(self, model_id: str, record: Record, *, retry: bool) -> str | None:
        """Make `model_id` the active one and return None, or return why it cannot be."""
        limit = self._settings.max_start_crashes
        # Without another model to fall back to, trying once more is all that can be done.
        crashes, reason = record.crashes if retry else 0, "the daemon died"
        while crashes < limit:
            try:
                self.active = await self._obtain(model_id)
            except UnavailableError as error:
                reason = error.detail
                if not retry:
                    return reason
                crashes = (await asyncio.to_thread(self.starts.crashed)).crashes
                log.error("model %s did not start, crash %d of %d: %s", model_id, crashes, limit, reason)
                await asyncio.sleep(_RETRY_START_S * (crashes < limit))
            except BrainError as error:
                return error.detail
            else:
                return None
        return f"{crashes} crashes at start, the last one: {reason}"

    async def _enter_safe_mode(self, model_id: str, stand_in: str | None, reason: str) -> None:
        self.error = f"model {model_id} could not be loaded: {reason}"
        log.error("%s", self.error)
        if stand_in is None:
            return
        try:
            self.loading = stand_in
            self.active = await self._obtain(stand_in)
        except BrainError as error:
            self.error += f"; nor could the last good model {stand_in}: {error.detail}"
            log.error("%s", self.error)
            return
        self.safe_mode = f"model {stand_in} stands in for {model_id}: {reason}"
        log.error("safe mode: %s. %s", self.safe_mode, LEAVE_SAFE_MODE)
        await asyncio.to_thread(self.starts.enter_safe_mode, reason)
        try:
            await asyncio.to_thread(self.store.reject, model_id, reason)
        except UnavailableError as error:
            log.warning("model %s could not be marked: %s", model_id, error.detail)

    def _stand_in(self, model_id: str) -> str | None:
        """Return what comes up in place of `model_id`: the last good model, else the one before."""
        rejected = self.store.rejected()
        names = (self.store.linked("last_good"), self.store.linked("previous"))
        return next((name for name in names if name not in (None, model_id) and name not in rejected), None)

    async def _swap(self, model: ServedModel) -> None:
        self._require_ready(model)
        before = self.active if self.active is not model else self.previous
        await asyncio.to_thread(self.store.point, model.model_id, before.model_id if before else None)
        self.active, self.previous, self.error, self.safe_mode = model, before, None, None
        self._share_backends()
        log.info("model %s serves, %s before", model.model_id, before.model_id if before else "none")
        await asyncio.to_thread(self.starts.activated, model.model_id)
        try:
            await asyncio.to_thread(self.store.pardon, model.model_id)
        except UnavailableError as error:
            log.warning("model %s still counts as rejected: %s", model.model_id, error.detail)

    def _share_backends(self) -> None:
        """Give the active model the best backend and a standby, and every other one what it needs to answer."""
        for model in self._loaded.values():
            model.set_active(model is self.active)

    def _require_ready(self, model: ServedModel) -> None:
        if not model.ready:
            raise UnavailableError(
                f"the worker of model {model.model_id} is being started again ({model.last_error}); "
                "what serves now goes on, retry in a few seconds"
            )

    def _role(self, model_id: str) -> str | None:
        for role, model in (("active", self.active), ("previous", self.previous)):
            if model is not None and model.model_id == model_id:
                return role
        return None

    def _state(self, model_id: str) -> dict[str, Any]:
        model = self._loaded.get(model_id)
        return {"role": self._role(model_id), "serving": model.status() if model else None}
