"""Episodes as RLDS datasets in TFDS layout: conversion without TensorFlow, and exact, seeded loading."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
    from brain_service.datasets.dataset import Dataset, EpisodeVectors, open_dataset
    from brain_service.datasets.loader import Batch, SequenceLoader
    from brain_service.datasets.manifest import Manifest
    from brain_service.datasets.statistics import Statistics

__all__ = [
    "Batch",
    "ConvertReport",
    "Dataset",
    "EpisodeVectors",
    "Manifest",
    "SequenceLoader",
    "Statistics",
    "convert_directory_to_tfrecord",
    "open_dataset",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Batch": "loader",
        "ConvertReport": "convert",
        "Dataset": "dataset",
        "EpisodeVectors": "dataset",
        "Manifest": "manifest",
        "SequenceLoader": "loader",
        "Statistics": "statistics",
        "convert_directory_to_tfrecord": "convert",
        "open_dataset": "dataset",
    },
)
