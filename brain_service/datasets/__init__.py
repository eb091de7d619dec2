"""Episodes as RLDS datasets in TFDS layout: conversion without TensorFlow, exact loading, other formats."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
    from brain_service.datasets.dataset import Dataset, EpisodeVectors, open_dataset
    from brain_service.datasets.formats import ExportReport, export_dataset, import_dataset
    from brain_service.datasets.import_log import ImportReport
    from brain_service.datasets.import_source import ImportOptions
    from brain_service.datasets.loader import Batch, SequenceLoader
    from brain_service.datasets.manifest import Manifest
    from brain_service.datasets.statistics import Statistics

__all__ = [
    "Batch",
    "ConvertReport",
    "Dataset",
    "EpisodeVectors",
    "ExportReport",
    "ImportOptions",
    "ImportReport",
    "Manifest",
    "SequenceLoader",
    "Statistics",
    "convert_directory_to_tfrecord",
    "export_dataset",
    "import_dataset",
    "open_dataset",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Batch": "loader",
        "ConvertReport": "convert",
        "Dataset": "dataset",
        "EpisodeVectors": "dataset",
        "ExportReport": "formats",
        "ImportOptions": "import_source",
        "ImportReport": "import_log",
        "Manifest": "manifest",
        "SequenceLoader": "loader",
        "Statistics": "statistics",
        "convert_directory_to_tfrecord": "convert",
        "export_dataset": "formats",
        "import_dataset": "formats",
        "open_dataset": "dataset",
    },
)
