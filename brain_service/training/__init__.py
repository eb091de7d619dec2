"""Training: objective, optimiser step, loop with checkpoints and resume, evaluation on held-out episodes."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.training.checkpointing import LoadedCheckpoint, load_checkpoint
    from brain_service.training.config import TrainConfig
    from brain_service.training.evaluation import EvaluationResult, evaluate
    from brain_service.training.loop import TrainProgress, TrainResult, train
    from brain_service.training.normalisation import Normaliser

__all__ = [
    "EvaluationResult",
    "LoadedCheckpoint",
    "Normaliser",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "evaluate",
    "load_checkpoint",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EvaluationResult": "evaluation",
        "LoadedCheckpoint": "checkpointing",
        "Normaliser": "normalisation",
        "TrainConfig": "config",
        "TrainProgress": "loop",
        "TrainResult": "loop",
        "evaluate": "evaluation",
        "load_checkpoint": "checkpointing",
        "train": "loop",
    },
)
