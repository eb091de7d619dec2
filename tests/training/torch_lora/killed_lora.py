"""Work with adapters that is to be killed: `python -m tests.training.torch_lora.killed_lora train|merge ...`.

train DATASET BASE FOLDER CONFIG: as `train_adapters`. merge BASE ADAPTERS CHECKPOINTS: merges again and again,
into folders of their own, and says before each that it begins.
"""

import itertools
import json
import sys
from pathlib import Path

from brain_service.training.torch_lora.base import checkpoint_base
from brain_service.training.torch_lora.config import LoraConfig
from brain_service.training.torch_lora.merge import merge_adapters
from brain_service.training.torch_lora.trainer import LoraResult, train_adapters


def train(dataset: str, base: str, folder: str, config: str) -> LoraResult:
    return train_adapters(
        dataset, Path(folder), checkpoint_base(Path(base)), LoraConfig.from_dict(json.loads(config))
    )


def merge(base: str, adapters: str, checkpoints: str) -> None:
    found = checkpoint_base(Path(base))
    for number in itertools.count():
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        merge_adapters(Path(adapters), found, Path(checkpoints) / str(number))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(*sys.argv[2:])
    else:
        merge(*sys.argv[2:])
