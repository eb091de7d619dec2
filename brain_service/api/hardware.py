"""`/hardware`: what this machine can train and act with, and who trains on it."""

import asyncio
from typing import Any

from fastapi import APIRouter

from brain_service.api.bodies import JsonResponse
from brain_service.api.openapi_jobs import TRAINERS
from brain_service.api.probing import in_probe_thread
from brain_service.api.services import ServicesDep
from brain_service.hardware.detection import INFERENCE_ORDER, TRAINING_ORDER, Machine, detect_jax_backends
from brain_service.hardware.trainers import describe_trainers

__all__ = ["router"]

router = APIRouter(tags=["status"])

_SCHEMA = {
    "type": "object",
    "required": ["backends", "best_for_training", "best_for_inference", "trainers"],
    "properties": {
        "backends": {"type": "object", "description": "cpu, gpu, tpu, hailo: `available`, `reason`, `devices`."},
        "best_for_training": {"enum": [*TRAINING_ORDER, None]},
        "best_for_inference": {"enum": [*INFERENCE_ORDER, None]},
        "trainers": TRAINERS,
    },
}
_HARDWARE: dict[int | str, dict[str, Any]] = {
    200: {"description": "What there is", "content": {"application/json": {"schema": _SCHEMA}}}
}


@router.get("/hardware", operation_id="hardware", responses=_HARDWARE)
async def hardware(services: ServicesDep) -> JsonResponse:
    """Tell for each device whether it is usable, and if not, why; and the best for training and for inference.

    `trainers` tells who trains with `trainer: auto`, why, and what the alternatives would be. The runtimes are
    asked in child processes, which takes seconds the first time after the machine's start; their answers are kept.
    """
    settings = services.settings
    machine = Machine(cache_dir=settings.cache_dir)
    found, trainers = await asyncio.gather(
        in_probe_thread(detect_jax_backends, cache_dir=settings.cache_dir),
        in_probe_thread(describe_trainers, settings.learning.prefer_jax, machine=machine),
    )
    return JsonResponse(found | {"trainers": trainers})
