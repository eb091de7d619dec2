"""`--plan`: a plan for the slice is made first, and a run that does not fit is refused before it is compiled."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable

from brain_service.datasets.loader import Dataset
from brain_service.errors import ConfigError, InvalidError
from brain_service.settings import child_environment
from brain_service.training.config import TrainConfig
from cloud_trainer.distributed import Hosts

__all__ = ["plan_first"]

MODULE = "cloud_trainer.plan"


def plan_first(config: TrainConfig, topology: str | None, fsdp: int) -> Callable[[Dataset, Hosts], None]:
    """Return what makes the plan on the first host, in a process of its own: this one's devices are taken.

    It runs `cloud-trainer plan` with the run's settings; what that prints goes where this process's output goes.

    Raises:
        ConfigError: no topology was given to plan for, or planning is not part of this installation.
    """
    if topology is None:
        raise ConfigError("--plan needs --topology, the slice to plan for, such as v5e:4x4", field="topology")
    if importlib.util.find_spec(MODULE) is None:
        raise ConfigError("--plan: planning is not part of this installation", field="plan")
    options = {
        "--preset": config.preset,
        "--batch-size": config.batch_size,
        "--sequence-length": config.sequence_length,
        "--num-steps": config.steps,
        "--topology": topology,
        "--fsdp": fsdp,
    }

    def plan(_dataset: Dataset, hosts: Hosts) -> None:
        if hosts.first:
            words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
            environment = child_environment({"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
            done = subprocess.run(
                [sys.executable, "-m", "cloud_trainer", "plan", *words], check=False, env=environment
            )
            if done.returncode != 0:
                raise InvalidError(
                    f"the plan for {topology} refuses this run (exit code {done.returncode}, see above); use a "
                    "larger slice, more --fsdp, or a smaller batch",
                    field="topology",
                )
        hosts.wait_for_all("planned")

    return plan
