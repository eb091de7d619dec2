"""Watches what models do with the live sessions, and acts on it.

Before a swap a canary; after it probation, and a rollback by itself on live evidence; the live sessions finish on
their model or are rebuilt on the new one. Nothing here runs before a live answer has gone out.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from brain_service.errors import BrainError, ConflictError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.bundle import Bundle
from brain_service.export.manifest import Manifest
from brain_service.inference.canary import Canary
from brain_service.inference.conduct import Conduct, Usual, fault, usual_of_golden
from brain_service.inference.fleet import Fleet
from brain_service.inference.rebuild import rebuild
from brain_service.inference.served_model import ServedModel
from brain_service.inference.sessions import Session, SessionTable
from brain_service.settings import InferenceSettings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

__all__ = ["Oversight"]

log = logging.getLogger(__name__)

_RETRY_S = 1.0


class _Probation:
    """The first while of a model in service: what is usual, and what it did at the start of it."""

    def __init__(self, model: ServedModel, usual: Usual, conduct: Conduct) -> None:
        self.model = model
        self.usual = usual
        self.conduct = conduct
        self.begun_s = time.monotonic()
        self.deaths = model.deaths
        self.evidence: str | None = None
        self.outcome: str | None = None


class Oversight:
    """Canary, probation, rollback and rebuilding, over one fleet and its sessions. Belongs to one event loop."""

    def __init__(self, fleet: Fleet, sessions: SessionTable, settings: InferenceSettings) -> None:
        self._fleet = fleet
        self._sessions = sessions
        self._settings = settings
        self._conducts: dict[str, Conduct] = {}
        self._canary: Canary | None = None
        self._canary_report: str | None = None
        self._probation: _Probation | None = None
        self._condemned: asyncio.Queue[_Probation] = asyncio.Queue()
        self._rebuilding: asyncio.Task[None] | None = None
        self._rollbacks: list[dict[str, Any]] = []

    async def activate(self, model_id: str, *, by_itself: bool = False) -> str | None:
        """Swap `model_id` in behind its canary; return the canary's report, None where it served already.

        Raises:
            NotFoundError, CorruptDataError, UnavailableError: see `Fleet.activate`.
            ConflictError: rejected before, refused by its canary, or of another spec than the live sessions.
        """
        self._canary_report = None
        before = self._fleet.active
        if before is not None:
            # Before seconds go into loading it.
            manifest = await asyncio.to_thread(self._fleet.store.manifest, model_id)
            self._refuse_misfit(before.manifest, manifest, by_itself=by_itself)
        if not await self._fleet.activate(
            model_id, lambda model: self._try_out(model, by_itself=by_itself), by_itself=by_itself
        ):
            return None
        await self._swapped(before)
        return self._canary_report

    async def rollback(self) -> str:
        """Serve the previous model again and return its id; see `Fleet.rollback`."""
        before = self._fleet.active
        model_id = await self._fleet.rollback()
        await self._swapped(before)
        return model_id

    async def begin(self) -> None:
        """Put the model that a start brought up on probation, unless it came well through one before."""
        model = self._fleet.active
        if model is None or self._fleet.safe_mode is not None:
            return
        good = await asyncio.to_thread(self._fleet.store.linked, "last_good")
        if good != model.model_id:
            await self._put_on_probation(model, None)

    @property
    def wants_requests(self) -> bool:
        """Whether a canary would look at the live steps' requests."""
        return self._canary is not None

    def answered(
        self,
        session: Session,
        model: ServedModel,
        request: "Float32[np.ndarray, 'R'] | None",
        action: "Float32[np.ndarray, 'A']",
        previous: "Float32[np.ndarray, 'A'] | None",
    ) -> None:
        """Take in an answered step, after its answer: its model, request, action, and the action before it.

        The request has shape `[R]`, an action `[A]`, in raw units.
        """
        self._conduct(model).answered(action, previous)
        if self._canary is not None and request is not None:
            self._canary.offer((session.session_id, session.life), model, request, action, previous)
        self._judge(model)

    def late(self, model: ServedModel) -> None:
        """Take in a step that its worker did not answer in time."""
        self._conduct(model).late()
        self._judge(model)

    def broken(self, model: ServedModel) -> None:
        """Take in a step whose action was not finite."""
        self._conduct(model).broken()
        self._judge(model)

    async def keep(self) -> None:
        """Look at what no step shows: dying workers, and the end of probation. Called about once a second."""
        loaded = {model["model_id"] for model in self._fleet.loaded()}
        self._conducts = {name: conduct for name, conduct in self._conducts.items() if name in loaded}
        probation = self._probation
        if probation is None or probation.outcome is not None or self._fleet.active is not probation.model:
            return
        deaths = probation.model.deaths - probation.deaths
        if deaths >= self._settings.rollback.max_worker_deaths:
            self._condemn(probation, f"its worker died {deaths} times")
        rules = self._settings.rollback
        lasted = time.monotonic() - probation.begun_s >= rules.probation_s
        if lasted and probation.conduct.answers >= rules.probation_steps and probation.evidence is None:
            await asyncio.to_thread(self._fleet.store.mark_good, probation.model.model_id)
            probation.outcome = "passed"
            log.info("model %s came well through its probation", probation.model.model_id)

    async def run(self) -> None:
        """Carry out rollbacks until cancelled."""
        while True:
            probation = await self._condemned.get()
            try:
                await self._roll_back(probation)
            except ConflictError as error:
                probation.outcome = f"not rolled back: {error.detail}"
                log.error("model %s: %s; %s", probation.model.model_id, probation.evidence, error.detail)

    async def close(self) -> None:
        """Stop rebuilding."""
        await self._stop_rebuilding()

    def status(self) -> dict[str, Any]:
        """Return probation, the last canary's report and the rollbacks since the start, for /health."""
        probation = self._probation
        return {
            "canary": self._canary_report,
            "rollbacks": list(self._rollbacks),
            "probation": None
            if probation is None
            else {
                "model_id": probation.model.model_id,
                "seconds": round(time.monotonic() - probation.begun_s, 1),
                "steps": probation.conduct.steps,
                "evidence": probation.evidence,
                "outcome": probation.outcome,
            },
        }

    async def _try_out(self, model: ServedModel, *, by_itself: bool) -> None:
        active = self._fleet.active
        if active is None or active is model:
            self._canary_report = "skipped: no other model serves"
            return
        self._refuse_misfit(active.manifest, model.manifest, by_itself=by_itself)
        asked_s = time.monotonic() - self._settings.canary_timeout_s
        sessions = self._sessions.all()
        if self._settings.canary_steps == 0:
            self._canary_report = "skipped: inference.canary_steps is 0"
        elif not any(session.model is active and session.used_s >= asked_s for session in sessions):
            self._canary_report = (
                f"skipped: no live session asked in the last {self._settings.canary_timeout_s:g} s"
            )
        else:
            canary = self._canary = Canary(model, active, self._settings)
            try:
                self._canary_report = await canary.verdict()
            except ConflictError as error:
                self._canary_report = error.detail
                raise
            finally:
                self._canary = None
        log.info("canary of model %s: %s", model.model_id, self._canary_report)

    def _refuse_misfit(self, active: Manifest, candidate: Manifest, *, by_itself: bool) -> None:
        """Refuse another spec than the live sessions', and where no operator asks, than the active model's."""
        live = len(self._sessions)
        what = _difference(active, candidate, live=live > 0) if live or by_itself else ""
        if what:
            fix = f"POST /models/{candidate.model_id}/activate serves it all the same"
            raise ConflictError(
                f"model {candidate.model_id} does not fit this robot: {what}. "
                + (f"End the {live} live sessions first, then {fix}" if live else fix)
            )

    async def _swapped(self, before: ServedModel | None) -> None:
        model = self._fleet.active
        if model is None:
            return
        if before is not model:
            await self._put_on_probation(model, before)
        if self._settings.on_swap == "replay":
            await self._rebuild_sessions(model)

    async def _put_on_probation(self, model: ServedModel, before: ServedModel | None) -> None:
        if self._settings.rollback.probation_s == 0:
            return
        known = self._conducts.get(before.model_id) if before is not None else None
        if known is not None and known.judged >= self._settings.rollback.min_steps:
            usual = known.usual()
        else:
            usual = await self._usual_of_golden(model)
        again = before is None and self._probation is not None and self._probation.model is model
        if self._fleet.active is not model or again:
            # Another activation came first.
            return
        # Counted from nothing: what it did in an earlier service is no evidence now.
        conduct = self._conducts[model.model_id] = Conduct(model.manifest, self._settings.rollback.window_steps)
        self._probation = _Probation(model, usual, conduct)

    async def _usual_of_golden(self, model: ServedModel) -> Usual:
        """Return what the model's reference outputs do: all that is known where none before it acted."""
        try:
            path = await asyncio.to_thread(self._fleet.store.path, model.model_id)
            golden = await asyncio.to_thread(Bundle(path, model.manifest).golden)
        except BrainError as error:
            log.warning("model %s: nothing is known of its usual actions: %s", model.model_id, error.detail)
            return Usual(limit_share=1.0, jump=1.0)
        return usual_of_golden(golden, model.manifest)

    def _conduct(self, model: ServedModel) -> Conduct:
        conduct = self._conducts.get(model.model_id)
        if conduct is None:
            conduct = self._conducts[model.model_id] = Conduct(
                model.manifest, self._settings.rollback.window_steps
            )
        return conduct

    def _judge(self, model: ServedModel) -> None:
        probation = self._probation
        if probation is None or probation.model is not model or probation.outcome is not None:
            return
        if probation.evidence is None and self._fleet.active is model:
            reason = fault(probation.conduct, probation.usual, self._settings.rollback)
            if reason is not None:
                self._condemn(probation, reason)

    def _condemn(self, probation: _Probation, evidence: str) -> None:
        if probation.evidence is None:
            probation.evidence = evidence
            self._condemned.put_nowait(probation)

    async def _roll_back(self, probation: _Probation) -> None:
        """Put the model before in the place of a condemned one, as soon as it can serve.

        Raises:
            ConflictError: there is none.
        """
        model, evidence = probation.model, probation.evidence or ""
        while True:
            try:
                served = await self._fleet.step_back(model)
                break
            except (NotFoundError, CorruptDataError, UnavailableError) as error:
                log.error("model %s cannot be rolled back yet: %s", model.model_id, error.detail)
                await asyncio.sleep(_RETRY_S)
        probation.outcome = "rolled back" if served else "replaced before it was rolled back"
        self._rollbacks.append({"model_id": model.model_id, "evidence": evidence, "at_ns": time.time_ns()})
        log.error("model %s was rolled back: %s", model.model_id, evidence)
        if served and self._fleet.active is not None and self._settings.on_swap == "replay":
            # Held until they have moved: the condemned model is to answer nothing more.
            await self._rebuild_sessions(self._fleet.active, held_steps=self._settings.replay_steps)
            await self._rebuilt()
        for session in self._sessions.all():
            if session.model is model:
                reason = f"was ended when its model {model.model_id} was rolled back ({evidence})"
                self._sessions.drop(session, reason)
        await self._fleet.reject(model.model_id, evidence)

    async def _rebuild_sessions(self, model: ServedModel, held_steps: int = 1) -> None:
        await self._stop_rebuilding()
        self._rebuilding = asyncio.create_task(self._rebuild_all(model, held_steps))

    async def _rebuild_all(self, model: ServedModel, held_steps: int) -> None:
        # One by one: the new model answers live steps too, and each waits for at most one replayed step.
        for session in self._sessions.all():
            try:
                if await rebuild(session, model, self._sessions, self._settings.replay_steps, held_steps):
                    log.info("session %s moved to model %s", session.session_id, model.model_id)
            except BrainError as error:
                log.warning("session %s does not move to %s: %s", session.session_id, model.model_id, error.detail)

    async def _rebuilt(self) -> None:
        if self._rebuilding is not None:
            await asyncio.gather(self._rebuilding, return_exceptions=True)

    async def _stop_rebuilding(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await self._rebuilt()


def _difference(ours: Manifest, theirs: Manifest, *, live: bool) -> str:
    """Tell the first difference in what two models ask for and give, nothing where there is none.

    Of images only the one that the candidate sees counts: what the robot would have to send anew, and with `live`
    sessions also its size, since their last inputs are replayed.
    """
    mine, other = ours.image, theirs.image
    sent = mine is not None and other is not None and (mine.path, mine.source) == (other.path, other.source)
    if other is not None and other != mine and (live or not sent):
        active = "none" if mine is None else f"{mine.path!r} at {list(mine.shape)}"
        return f"it sees the image {other.path!r} at {list(other.shape)}, the active model {active}"
    for part in ("observation", "action"):
        ours_asked, theirs_asked = (
            {path: feature for path, feature in getattr(manifest.spec, part).items() if feature.dtype != "image"}
            for manifest in (ours, theirs)
        )
        for path in sorted(ours_asked.keys() | theirs_asked.keys()):
            active_feature, feature = ours_asked.get(path), theirs_asked.get(path)
            if active_feature != feature:
                return f"{part}/{path} is {_shown(feature)}, the active model's is {_shown(active_feature)}"
    return ""


def _shown(feature: Any) -> str:
    return "missing" if feature is None else f"{feature.dtype}{list(feature.shape)}"
