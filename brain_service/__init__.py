"""A robot's brain as a daemon: capture, datasets, training, export and inference."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.datasets.convert import convert_directory_to_tfrecord
    from brain_service.episodes.logger import EpisodeLogger
    from brain_service.hardware.detection import detect_jax_backends
    from brain_service.hardware.trainers import select_trainer
    from brain_service.inference.router import InferenceRouter
    from brain_service.model.config import CoreModelConfig
    from brain_service.model.core import CoreModel

__version__ = "0.1.0"

__all__ = [
    "CoreModel",
    "CoreModelConfig",
    "EpisodeLogger",
    "InferenceRouter",
    "convert_directory_to_tfrecord",
    "detect_jax_backends",
    "select_trainer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CoreModel": "model.core",
        "CoreModelConfig": "model.config",
        "EpisodeLogger": "episodes.logger",
        "InferenceRouter": "inference.router",
        "convert_directory_to_tfrecord": "datasets.convert",
        "detect_jax_backends": "hardware.detection",
        "select_trainer": "hardware.trainers",
    },
)
