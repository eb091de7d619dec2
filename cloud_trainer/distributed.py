"""The processes of one run: how they find each other, what the first one tells the others, and how all end.

`jax.distributed` is always initialised, for one process too: without it nothing hears of a preemption.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import distributed as service  # the only way to its key-value store; Orbax goes it too

from brain_service.errors import InvalidError, UnavailableError

__all__ = ["Cluster", "Hosts", "check_topology", "join"]

log = logging.getLogger(__name__)

END = "continuon-brain/end"
POLL_S = 1.0
LINGER_S = 3 * POLL_S
WAIT_MS = 24 * 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the processes find each other; by default as the machine's own environment tells (TPU, Slurm, ...)."""

    coordinator_address: str | None = None
    """`host:port` of process 0."""
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if None in given and given != (None, None, None):
            raise InvalidError(
                "--coordinator-address, --num-processes and --process-id go together; give all three or none",
                field="coordinator_address",
            )
        if self.num_processes is not None and not 0 <= (self.process_id or 0) < self.num_processes:
            raise InvalidError(
                f"process id {self.process_id} is not in 0 to {self.num_processes - 1}", field="process_id"
            )


class Hosts:
    """This process among the others."""

    def __init__(self) -> None:
        self.index = jax.process_index()
        self.count = jax.process_count()
        self._client: Any = service.global_state.client
        self._over = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.index == 0

    def first_says(self, name: str, make: Callable[[], str]) -> str:
        """Return what the first process makes, on every process."""
        key = f"continuon-brain/{name}"
        if self.first:
            made = make()
            if self.count > 1:
                self._client.key_value_set(key, made)
            return made
        return str(self._client.blocking_key_value_get(key, WAIT_MS))

    def wait_for_all(self, name: str) -> None:
        """Wait until every process has come here, for a day at most; nothing runs on the devices."""
        if self.count > 1:
            self._client.wait_at_barrier(f"continuon-brain/{name}", WAIT_MS)

    def tell_end(self, exit_code: int, problem: Mapping[str, Any] | None) -> None:
        """Have all other processes end with this code, and give them `LINGER_S` seconds to hear of it."""
        if self.count == 1:
            return
        try:
            self._client.key_value_set(END, json.dumps({"exit_code": exit_code, "problem": problem}))
        except jax.errors.JaxRuntimeError as error:
            # Another one was faster, or the first process is gone: its end is the run's.
            log.warning("the other hosts cannot be told of the end", extra={"reason": str(error)})
            return
        self.linger()

    def linger(self) -> None:
        """Give the others time to hear or to tell of an end."""
        if self.count > 1:
            threading.Event().wait(LINGER_S)

    def heard_end(self) -> dict[str, Any] | None:
        """Return what another process told of the run's end, None while nobody did."""
        try:
            told = self._client.key_value_try_get(END)
        except jax.errors.JaxRuntimeError:
            # Not there yet, or the service is gone: JAX itself ends this process then.
            return None
        return dict(json.loads(told))

    def stop_watching(self) -> None:
        """End that thread: this process ends well by itself."""
        self._over.set()

    def watch(self, on_end: Callable[[dict[str, Any]], None]) -> None:
        """Have a thread end this process when another one told of an end; `on_end` is called before.

        The main thread may hang in a collective that will never come about, so nothing is unwound.
        """

        def wait() -> None:
            while (end := self.heard_end()) is None:
                if self._over.wait(POLL_S):
                    return
            on_end(end)
            os._exit(int(end["exit_code"]))

        if self.count > 1 and not self._over.is_set():
            threading.Thread(target=wait, name="hosts-watch", daemon=True).start()


def join(cluster: Cluster) -> Hosts:
    """Join the run's processes, or be a run of one.

    Raises:
        UnavailableError: they do not find each other.
    """
    try:
        if cluster.num_processes is not None:
            jax.distributed.initialize(
                cluster.coordinator_address,
                cluster.num_processes,
                cluster.process_id,
                cluster_detection_method="deactivate",
            )
        elif _in_cluster():
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                f"127.0.0.1:{_free_port()}",
                1,
                0,
                cluster_detection_method="deactivate",
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise UnavailableError(
            f"the hosts do not find each other: {str(error).splitlines()[0]}; check --coordinator-address, and "
            "that every process was started"
        ) from error
    return Hosts()


def _in_cluster() -> bool:
    """Whether JAX finds a cluster's environment by itself."""
    from jax._src.clusters import ClusterEnv  # the list that `initialize` goes through; it has no public name

    return any(kind.is_env_present() for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def check_topology(topology: str) -> str | None:
    """Return what is there in place of the wished slice such as `v5e:4x4`, None where it is as wished."""
    _, _, shape = topology.partition(":")
    wished = 1
    for side in shape.split("x"):
        wished *= int(side)
    devices = jax.devices()
    kind = devices[0].device_kind
    generation = topology.partition(":")[0].lstrip("v").removesuffix("e").removesuffix("p")
    if len(devices) == wished and devices[0].platform == "tpu" and generation in kind:
        return None
    return f"{len(devices)} x {kind} in place of {topology}"
