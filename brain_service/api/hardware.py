"""`/hardware`: what this machine can train and act with."""

import asyncio

from fastapi import APIRouter

from brain_service.api.bodies import JsonResponse
from brain_service.hardware.detection import detect_jax_backends

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get("/hardware", operation_id="hardware")
async def hardware() -> JsonResponse:
    """Tell for each device whether it is usable, and if not, why; and the best for training and for inference.

    The runtimes are asked in child processes, which takes seconds the first time; their answers are kept for ten
    minutes.
    """
    return JsonResponse(await asyncio.to_thread(detect_jax_backends))
