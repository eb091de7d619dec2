"""The tasks by name."""

from collections.abc import Mapping

from tests.bench.learning.tasks.arm import ARM_TASKS
from tests.bench.learning.tasks.cards import REPEAT_FIRST, REPEAT_PREVIOUS
from tests.bench.learning.tasks.pendulum import PENDULUM
from tests.bench.learning.tasks.task import Demonstrations, Judge, Outcome, Task

__all__ = ["TASKS", "Demonstrations", "Judge", "Outcome", "Task"]

TASKS: Mapping[str, Task] = {task.name: task for task in (REPEAT_FIRST, REPEAT_PREVIOUS, PENDULUM, *ARM_TASKS)}
"""In the order of the table."""
