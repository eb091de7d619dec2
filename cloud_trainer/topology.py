"""Compile the real train step for chips that are not here, and read its plan off the compiled program.

`python -m cloud_trainer.topology` is the process behind `Compiler`: a request a line in, a plan a line out.
Source: https://docs.jax.dev/en/latest/aot.html.
"""

import json
import os
import queue
import re
import sys
import threading
import time
from dataclasses import replace
from math import prod
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import topologies
from jax.extend.core import Jaxpr
from jax.sharding import Mesh

from brain_service.cloud.chips import Slice, parse_topology
from brain_service.cloud.plans import Plan
from brain_service.errors import InvalidError, UnavailableError
from brain_service.model.config import CoreModelConfig
from brain_service.model.signals import StepInputs
from brain_service.training.config import TrainConfig
from brain_service.training.objective import Sequences
from brain_service.training.sharding import batch_sharding, make_mesh, require_divisible
from brain_service.training.step import TrainState, abstract_state, make_train_step, state_sharding
from cloud_trainer.accounting import Account, account
from cloud_trainer.compiler import StepRequest
from cloud_trainer.hlo import parse_program
from cloud_trainer.roofline import bound

__all__ = ["HEADROOM", "compile_for_slice", "plan_step"]

HEADROOM = 0.05
"""Share of a chip's memory that a plan leaves free: batches made ahead, and the compiler's next version."""
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
# Two ways in which the compiler says it: of everything, and of temporaries alone.
OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
OUT_OF_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")


def compile_for_slice(request: StepRequest) -> Plan:
    """Compile a step for a slice by libtpu and return its plan.

    Raises:
        InvalidError: a size is impossible, or the chips do not divide the batch.
        UnavailableError: libtpu is not installed here, or does not know the topology.
    """
    slice_ = parse_topology(request.topology)
    config = TrainConfig(
        preset=request.preset,
        batch_size=request.batch_size,
        sequence_length=request.sequence_length,
        mode=request.mode,
        # `auto` asks for the device of this machine; the run's is a TPU.
        model={"compute_dtype": "bfloat16", **request.model},
    )
    mesh = make_mesh(request.fsdp, _devices(slice_))
    return plan_step(config, mesh, slice_, request.obs_dim, request.action_dim)


def _devices(slice_: Slice) -> list[Any]:
    shape = slice_.shape
    options: dict[str, Any] = {}
    if slice_.chips == 1:
        # One chip is less than a host; without its bounds libtpu insists on whole hosts.
        options["chips_per_host_bounds"] = (*shape, 1)[:3]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=slice_.topology, **options)
    except (JaxRuntimeError, RuntimeError, NotImplementedError, ValueError, OSError) as error:
        raise UnavailableError(
            f"no TPU compiler for {slice_.topology} here: {str(error).splitlines()[0]}; install "
            "continuon-brain[tpu] on an x86 machine"
        ) from error
    return list(found.devices)


def plan_step(config: TrainConfig, mesh: Mesh, slice_: Slice, obs_dim: int, action_dim: int) -> Plan:
    """Compile the step of a run for a mesh and return its plan; what does not fit comes back with `fits` false.

    Raises:
        InvalidError: the devices do not divide the batch, or a size is impossible.
    """
    require_divisible(config.batch_size, mesh)
    model = config.model_config(obs_dim, action_dim)
    state = _placed(abstract_state(model, config), mesh)
    batch = _batch(config, model, mesh)
    step = make_train_step(model, config, mesh)
    begun_s = time.monotonic()
    traced = step.trace(state, batch)  # type: ignore[attr-defined]  # jit's result has more than a call
    plan = Plan(
        preset=config.preset,
        topology=slice_.topology,
        batch_size=config.batch_size,
        sequence_length=int(batch.reward.shape[1]),
        obs_dim=obs_dim,
        action_dim=action_dim,
        fsdp=int(mesh.shape["fsdp"]),
        fits=False,
        hbm_bytes=0,
        hbm_limit_bytes=slice_.chip.hbm_bytes,
        state_bytes=_bytes_a_chip((state.params, state.opt_state)),
        argument_bytes=_bytes_a_chip((state, batch)),
        temporary_bytes=0,
        parameters=sum(prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        model_flops=_flops(traced.jaxpr.jaxpr) / mesh.size,
        matmul_flops=0.0,
        traffic_bytes=0.0,
        link_bytes={},
        kernels=0,
        compute_s=0.0,
        memory_s=0.0,
        links_s=0.0,
        compile_s=0.0,
    )
    try:
        compiled = traced.lower().compile()
    except JaxRuntimeError as error:
        needed = _needed_bytes(str(error), plan.argument_bytes)
        if needed is None:
            raise UnavailableError(f"the TPU's compiler failed: {str(error).splitlines()[0]}") from error
        return replace(plan, hbm_bytes=needed, compile_s=time.monotonic() - begun_s)
    return _measured(plan, compiled, slice_, mesh, time.monotonic() - begun_s)


def _needed_bytes(message: str, argument_bytes: int) -> int | None:
    for pattern, beside in ((OUT_OF_MEMORY, 0), (OUT_OF_TEMPORARIES, argument_bytes)):
        if found := pattern.search(message):
            size, unit = found.group(1, 2)
            return int(float(size) * UNITS[unit]) + beside
    return None


def _measured(plan: Plan, compiled: Any, slice_: Slice, mesh: Mesh, compile_s: float) -> Plan:
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    counted: Account = account(parse_program(compiled.as_text()), mesh.size)
    least = bound(counted, slice_)
    return replace(
        plan,
        fits=peak <= slice_.chip.hbm_bytes * (1 - HEADROOM),
        hbm_bytes=int(peak),
        argument_bytes=int(memory.argument_size_in_bytes),
        temporary_bytes=int(memory.temp_size_in_bytes),
        matmul_flops=counted.matmul_flops,
        traffic_bytes=counted.hbm_bytes,
        link_bytes=counted.collectives,
        kernels=counted.kernels,
        compute_s=least.compute_s,
        memory_s=least.memory_s,
        links_s=least.links_s,
        compile_s=compile_s,
    )


def _placed(state: TrainState, mesh: Mesh) -> TrainState:
    where = state_sharding(state, mesh)
    placed: TrainState = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, where
    )
    return placed


def _batch(config: TrainConfig, model: CoreModelConfig, mesh: Mesh) -> Sequences:
    rows, steps = config.batch_size, config.sequence_length
    if steps is None:
        raise InvalidError("a plan needs the longest sequence: give sequence_length", field="sequence_length")

    def array(*rest: int) -> Any:
        return jax.ShapeDtypeStruct((rows, steps, *rest), np.float32, sharding=batch_sharding(mesh))

    plain = array()
    image: Any = None
    if model.image_shape:
        image = jax.ShapeDtypeStruct((rows, steps, *model.image_shape), np.uint8, sharding=batch_sharding(mesh))
    inputs = StepInputs(array(model.obs_dim), array(model.action_dim), plain, plain, image)
    return Sequences(inputs, array(model.action_dim), plain, plain, plain, plain, plain, plain)


def _bytes_a_chip(tree: Any) -> int:
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _flops(jaxpr: Jaxpr, times: int = 1) -> float:
    # Matrix products as the source has them, each as often as it runs.
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (atom.aval.shape for atom in equation.invars)  # type: ignore[attr-defined]
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            shared = prod(left[axis] for axis in (*contracted, *batched))
            total += 2.0 * times * prod(left) * prod(right) / shared
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _flops(inner, inside)
    return total


def _read(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    # Whoever asked is gone, and nobody waits for what is being compiled.
    os._exit(0)


def main() -> None:
    """Answer requests until the input ends; then end at once, in the midst of a compilation too."""
    # What libtpu prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        line = lines.get()
        try:
            answer = compile_for_slice(StepRequest(**json.loads(line))).to_json()
        except (InvalidError, UnavailableError) as error:
            answer = {"error": error.detail, "kind": error.slug, "field": error.field}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
