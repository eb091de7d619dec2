"""`/models`: bundles, which one serves and why, activation and rollback."""

from fastapi import APIRouter

from brain_service.api.bodies import JsonResponse
from brain_service.api.services import ServicesDep

__all__ = ["router"]

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", operation_id="list_models")
async def list_models(services: ServicesDep) -> JsonResponse:
    """List bundles, newest first, with the active and the previous one marked."""
    return JsonResponse({"models": await services.router.models()})


@router.post("/rollback", operation_id="rollback_model")
async def rollback(services: ServicesDep) -> JsonResponse:
    """Serve the previous model again; sessions that run finish on their model, or move as `on_swap` says."""
    return JsonResponse({"model_id": await services.router.rollback()})


@router.get("/{model_id}", operation_id="get_model")
async def get_model(model_id: str, services: ServicesDep) -> JsonResponse:
    """Return a bundle's manifest and state."""
    return JsonResponse(await services.router.model(model_id))


@router.post("/{model_id}/activate", operation_id="activate_model")
async def activate(model_id: str, services: ServicesDep) -> JsonResponse:
    """Load, verify, warm and check a bundle, try it in shadow, then swap it in between two requests."""
    canary = await services.router.activate(model_id)
    return JsonResponse({"model_id": model_id} | ({} if canary is None else {"canary": canary}))
