"""`/v2`: the Open Inference Protocol v2 over HTTP, so that `tritonclient` and its like work as they are.

Model `brain` is the active one; a bundle's `model_id` names it alone, and is the only version there is. An input
is a feature, `observation/<path>`, an output an action, `action/<path>`, or the whole plan, `chunk` [H, A]. A
sequence is a session: no step of a sequence that is not running is ever answered from a silent zero state.

Source: Open Inference Protocol, REST specification; Triton's sequence and binary tensor data extensions.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

import brain_service
from brain_service.api.acting import answer_step, end_session
from brain_service.api.bodies import JsonResponse, read_body
from brain_service.api.openapi import V2_INFER, V2_INFERRED, V2_MODEL
from brain_service.api.openapi import body as body_of
from brain_service.api.openapi_answers import answers
from brain_service.api.sequences import StepCall, read_call
from brain_service.api.services import Services, ServicesDep
from brain_service.api.tensors import Question, Tensor, read_question, write_answer
from brain_service.errors import BrainError, ConflictError, InvalidError, MalformedError, NotFoundError
from brain_service.export.manifest import Manifest
from brain_service.inference.calls import InferReply, InferRequest
from brain_service.observation import check_observation
from brain_service.spec import EpisodeSpec, Feature, FeatureSpec
from brain_service.trees import flatten

__all__ = ["router"]

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

ACTIVE = "brain"
HEAD_LENGTH = "Inference-Header-Content-Length"
OBSERVATION, ACTION, CHUNK, REWARD = "observation/", "action/", "chunk", "reward"
_DATATYPES = {
    "float32": "FP32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8", "text": "BYTES", "image": "BYTES",
}  # fmt: skip
_INFER: dict[str, Any] = {
    "openapi_extra": body_of(V2_INFER, required=True),
    "responses": answers(400, 404, 409, 413, 415, 429, 504, schema=V2_INFERRED),
}
_DESCRIBE: dict[str, Any] = {"responses": answers(404, schema=V2_MODEL)}


@router.get("", operation_id="v2_server")
async def server() -> JsonResponse:
    """Name the server and the extensions of the protocol that it has."""
    extensions = ["sequence", "sequence(string_id)", "binary_tensor_data", "parameters"]
    return JsonResponse(
        {"name": "continuon-brain", "version": brain_service.__version__, "extensions": extensions}
    )


@router.get("/health/live", operation_id="v2_live", response_class=Response)
async def live() -> Response:
    """Answer 200 while the event loop turns."""
    return Response()


@router.get(
    "/health/ready",
    operation_id="v2_ready",
    response_class=Response,
    responses={400: {"description": "No model answers now"}},
)
async def ready(services: ServicesDep) -> Response:
    """Answer 200 when a warmed model answers, else 400; `GET /readyz?for=inference` says why."""
    return _truth(services.router.ready)


@router.get("/models/{model_name}", operation_id="v2_model", **_DESCRIBE)
async def model(model_name: str, services: ServicesDep) -> JsonResponse:
    """Describe a model's tensors; `reward` and images that it does not see may be left out of a request."""
    return await _describe(services, model_name, None)


@router.get("/models/{model_name}/versions/{model_version}", operation_id="v2_model_version", **_DESCRIBE)
async def model_of_version(model_name: str, model_version: str, services: ServicesDep) -> JsonResponse:
    """Describe a model's tensors; a version is a `model_id`."""
    return await _describe(services, model_name, model_version)


@router.get(
    "/models/{model_name}/ready",
    operation_id="v2_model_ready",
    response_class=Response,
    responses={400: {"description": "No"}},
)
async def model_ready(model_name: str, services: ServicesDep) -> Response:
    """Answer 200 when a sequence could start on this model now, else 400."""
    return _truth(_serves(services, model_name, None))


@router.get(
    "/models/{model_name}/versions/{model_version}/ready",
    operation_id="v2_model_version_ready",
    response_class=Response,
    responses={400: {"description": "No"}},
)
async def model_of_version_ready(model_name: str, model_version: str, services: ServicesDep) -> Response:
    """Answer 200 when a sequence could start on this model now, else 400."""
    return _truth(_serves(services, model_name, model_version))


@router.post("/models/{model_name}/infer", operation_id="v2_infer", **_INFER)
async def infer(model_name: str, request: Request, services: ServicesDep) -> Response:
    """Answer the action for one step of a sequence.

    After any error the sequence is where it was, and `next_step` says where that is.
    """
    return await _infer(request, services, model_name, None)


@router.post("/models/{model_name}/versions/{model_version}/infer", operation_id="v2_infer_version", **_INFER)
async def infer_version(model_name: str, model_version: str, request: Request, services: ServicesDep) -> Response:
    """Answer the action for one step of a sequence that runs on this very model."""
    return await _infer(request, services, model_name, model_version)


def _truth(value: bool) -> Response:
    """Return a health answer: the protocol's truth values are 200 and 4xx, without a body."""
    return Response(status_code=200 if value else 400)


def _pinned(name: str, version: str | None) -> set[str]:
    """Return the model ids that a request insists on."""
    return {name, version or ACTIVE} - {ACTIVE}


def _serves(services: Services, name: str, version: str | None) -> bool:
    if not services.router.ready:
        return False
    return _pinned(name, version) <= {services.router.manifest().model_id}


async def _describe(services: Services, name: str, version: str | None) -> JsonResponse:
    pinned = _pinned(name, version)
    if len(pinned) > 1:
        raise NotFoundError(f"model {name[:100]!r} has no version {str(version)[:100]!r}; its only one is its id")
    if pinned:
        found = await services.router.model(pinned.pop())
        manifest, backend = found["manifest"], (found["serving"] or {}).get("backend", "")
    else:
        manifest, backend = services.router.manifest().to_json(), services.router.status()["backend"]
    spec = EpisodeSpec.from_json(manifest["spec"])
    inputs = [_metadata(OBSERVATION + path, feature) for path, feature in spec.observation.items()]
    outputs = [_metadata(ACTION + path, feature) for path, feature in spec.action.items() if feature.is_numeric]
    size = sum(
        int(np.prod(feature.shape, dtype=np.int64)) for feature in spec.action.values() if feature.is_numeric
    )
    return JsonResponse(
        {
            "name": name,
            "versions": [manifest["model_id"]],
            "platform": f"continuon-brain_{backend}" if backend else "continuon-brain",
            "inputs": [*inputs, {"name": REWARD, "datatype": "FP32", "shape": [1]}],
            "outputs": [
                *outputs,
                {"name": CHUNK, "datatype": "FP32", "shape": [manifest["action_horizon"], size]},
            ],
        }
    )


def _metadata(name: str, feature: Feature) -> dict[str, Any]:
    return {"name": name, "datatype": _DATATYPES[feature.dtype], "shape": _tensor_shape(feature)}


def _tensor_shape(feature: Feature) -> tuple[int, ...]:
    """Return the shape of a feature's tensor; what has none, or is a file, is one element."""
    return (feature.shape if feature.is_numeric else ()) or (1,)


async def _infer(request: Request, services: Services, name: str, version: str | None) -> Response:
    received_ns = time.monotonic_ns()
    head_bytes = _head_bytes(request.headers)
    body = await read_body(request, services.settings.capture.max_step_bytes)
    question = read_question(body, head_bytes)
    call = read_call(question.parameters, _caller(request))
    manifest = services.router.manifest() if call.start else _running(services, call)
    await _require_model(services, call, manifest, _pinned(name, version))
    # All that can be wrong with the request is found before the state of a live sequence is given up.
    observation = read_observation(question.inputs, manifest.spec.observation)
    outputs = _outputs(question, call, manifest)
    asked = InferRequest(
        session_id=call.session_id,
        observation=observation,
        step=call.step,
        reward=_reward(question.inputs),
        deadline_ms=call.deadline_ms,
        received_ns=received_ns,
    )
    if call.start:
        seen = manifest.image.path if manifest.image else None
        check_observation(observation, manifest.spec.observation, seen)
        asked.check()
    made = await _begin(services, call) if call.start else False
    try:
        reply = await answer_step(services, asked, call.record)
    except BrainError:
        if made:
            await _end(services, call)
        raise
    if call.end:
        await _end(services, call)
    return _respond(reply, question, call, name, outputs)


def _head_bytes(headers: Mapping[str, str]) -> int | None:
    given = headers.get(HEAD_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise MalformedError(f"{HEAD_LENGTH}: {given[:50]!r} is no number of bytes")
    return int(given)


def _caller(request: Request) -> str:
    return request.headers.get("authorization") or (request.client.host if request.client else "unix")


def _running(services: Services, call: StepCall) -> Manifest:
    """Return the manifest of a running sequence's model.

    Raises:
        ConflictError: it does not run: its state is gone, or never was.
    """
    try:
        return services.router.manifest(call.session_id)
    except NotFoundError as error:
        raise ConflictError(
            f"sequence {call.sequence_id!r} does not run: it never began, has ended, or was evicted after "
            f"{services.settings.inference.session_idle_s:g} s without a step (inference.session_idle_s); its "
            "state is gone. Begin it with sequence_start",
            field="parameters/sequence_id",
        ) from error


async def _require_model(services: Services, call: StepCall, manifest: Manifest, pinned: set[str]) -> None:
    """Hold the model that would answer against the one that the request names.

    Raises:
        NotFoundError: there is no such bundle.
        ConflictError: the sequence runs, or would start, on another model.
    """
    for model_id in pinned - {manifest.model_id}:
        await services.router.model(model_id)
        if call.start:
            raise ConflictError(
                f"model {model_id} does not serve, {manifest.model_id} does; POST /models/{model_id}/activate, or "
                f"ask for model {ACTIVE!r}"
            )
        raise ConflictError(f"sequence {call.sequence_id!r} runs on model {manifest.model_id}, not on {model_id}")


def read_observation(inputs: Mapping[str, Tensor], spec: FeatureSpec) -> dict[str, Any]:
    """Return the features of an observation by path, from the request's tensors; their values are not checked.

    Raises:
        InvalidError: an input is no feature, or has another datatype or shape, or text is not UTF-8.
    """
    found: dict[str, Any] = {}
    for name, tensor in inputs.items():
        if name == REWARD:
            continue
        path = name.removeprefix(OBSERVATION)
        if path not in spec or path == name:
            known = ", ".join((*(OBSERVATION + path for path in spec), REWARD))
            raise InvalidError(f"input {name[:200]!r} is none of {known}", field=name)
        found[path] = _value(tensor, spec[path])
    if not found:
        raise InvalidError(
            f"no input is a feature of {', '.join(OBSERVATION + path for path in spec)}", field="inputs"
        )
    return found


def _value(tensor: Tensor, feature: Feature) -> Any:
    shape = _tensor_shape(feature)
    _require_form(tensor, _DATATYPES[feature.dtype], shape, feature.shape if feature.is_numeric else ())
    if isinstance(tensor.values, list):
        if feature.dtype == "image":
            return tensor.values[0]
        try:
            return tensor.values[0].decode()
        except UnicodeDecodeError as error:
            raise InvalidError(f"input {tensor.name!r}: text is not UTF-8: {error}", field=tensor.name) from error
    return tensor.values.reshape(feature.shape)


def _require_form(tensor: Tensor, datatype: str, *shapes: tuple[int, ...]) -> None:
    if tensor.datatype != datatype or tensor.shape not in shapes:
        raise InvalidError(
            f"input {tensor.name!r}: expected {datatype} {list(shapes[0])}, got {tensor.datatype} "
            f"{list(tensor.shape)}",
            field=tensor.name,
        )


def _reward(inputs: Mapping[str, Tensor]) -> float | None:
    tensor = inputs.get(REWARD)
    if tensor is None:
        return None
    _require_form(tensor, "FP32", (1,), ())
    assert isinstance(tensor.values, np.ndarray)
    return float(tensor.values.reshape(()))


def _outputs(question: Question, call: StepCall, manifest: Manifest) -> list[tuple[str, bool]]:
    """Return the names of the outputs to answer, and whether each goes as bytes.

    Raises:
        InvalidError: one that is asked for is no output of the model, or stands twice.
    """
    known = [*(ACTION + path for path, feature in manifest.spec.action.items() if feature.is_numeric), CHUNK]
    if not question.outputs:
        return [(name, call.binary) for name in known]
    names = [wanted.name for wanted in question.outputs]
    for name in names:
        if name not in known or names.count(name) > 1:
            fault = "is asked for twice" if name in known else f"is none of {', '.join(known)}"
            raise InvalidError(f"output {name[:200]!r} {fault}", field=name)
    return [(wanted.name, call.binary if wanted.binary is None else wanted.binary) for wanted in question.outputs]


async def _begin(services: Services, call: StepCall) -> bool:
    """Put the sequence's session at zero; tell whether it was made for that."""
    try:
        await services.router.reset_session(call.session_id)
    except NotFoundError:
        await services.router.create_session(call.session_id)
        return True
    services.recorder.release(call.session_id)
    return False


async def _end(services: Services, call: StepCall) -> None:
    # An operator may have ended it by its session id meanwhile.
    with contextlib.suppress(NotFoundError):
        await end_session(services, call.session_id)


def _respond(
    reply: InferReply, question: Question, call: StepCall, name: str, outputs: list[tuple[str, bool]]
) -> Response:
    values: dict[str, Any] = {CHUNK: reply.chunk}
    values |= {ACTION + path: np.asarray(value) for path, value in flatten(reply.action, "action").items()}
    tensors = []
    for output, binary in outputs:
        value = values[output]
        tensors.append((Tensor(output, _DATATYPES[value.dtype.name], value.shape or (1,), value), binary))
    head: dict[str, Any] = {"model_name": name, "model_version": reply.model_id}
    if question.request_id:
        head["id"] = question.request_id
    head["parameters"] = {
        "sequence_id": call.sequence_id,
        "step": reply.step,
        "state_step": reply.state_step,
        "backend": reply.backend,
        **{f"{part}_us": round(time_us, 1) for part, time_us in reply.timings_us.items()},
    } | ({"warnings": "; ".join(reply.warnings)} if reply.warnings else {})
    body, head_bytes = write_answer(head, tensors)
    if head_bytes is None:
        return Response(body, media_type="application/json")
    headers = {HEAD_LENGTH: str(head_bytes)}
    return Response(body, media_type="application/octet-stream", headers=headers)
