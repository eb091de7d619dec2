"""What the rows hand on to each other: one recording, and what the seed's own commands make of it, each made once.

Paths are the seed's below a temporary root: /opt/continuonos/brain/rlds/episodes and so on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from brain_service import EpisodeLogger, convert_directory_to_tfrecord
from brain_service.datasets.convert import ConvertReport
from tests.export.hailo_toy import install_compiler
from tests.fakes.gcs_faults import GcsFaults
from tests.seed_map.table import ROOT

OBSERVATION, ACTION, STEPS = 128, 32, 100
EPISODES = 16
"""Enough steps of the train split for Hailo's compiler, which wants 1,024."""
BUCKET, PREFIX = "continuon-rlds", "rlds/episodes"
DATA = f"gs://{BUCKET}/{PREFIX}"
RUN = f"gs://{BUCKET}/checkpoints/core_model_v0"
TRAINED_STEPS = 4
SMALL = json.dumps({"d_e": 32, "d_s": 16, "d_w": 16, "d_p": 8, "d_c": 16, "d_h": 32})
"""Sizes at which a step compiles soon."""


class Chain:
    """The artefacts, each made by the seed's snippet or command when it is first asked for."""

    def __init__(self, root: Path, bucket: GcsFaults) -> None:
        self.root = root
        self.bucket = bucket
        self.brain = root / "opt" / "continuonos" / "brain"
        self.episodes = self.brain / "rlds" / "episodes"
        self.tfrecord = self.brain / "rlds" / "tfrecord"

    def run(self, *words: str | Path, code: int = 0, **environment: str) -> str:
        """Run `python WORDS` in the root and return its standard output."""
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=self.root,
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == code, (
            f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def brain_command(self, *words: str | Path, code: int = 0, **environment: str) -> str:
        """Run `brain WORDS` and return its standard output."""
        return self.run("-m", "brain_service", *words, code=code, **environment)

    @property
    def environment(self) -> Mapping[str, str]:
        """What leads a process to this code, to the bucket and to the robot's data directory."""
        # Past the proxy, whose sessions are for our own uploads, straight to the server for what gcsfs does.
        return self.bucket.server.environment() | {
            "PYTHONPATH": str(ROOT),
            "BRAIN_DATA_DIR": str(self.brain),
            "BRAIN_CLOUD__STORAGE_ENDPOINT": self.bucket.url,
            "JAX_PLATFORMS": "cpu",
            # Nobody waits for these steps, but for their compiler.
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        }

    @cached_property
    def recorded(self) -> list[Path]:
        """The episodes' files: the seed's snippet, with numbers in the place of its dots."""
        rng = np.random.default_rng(0)
        gain = rng.normal(0, 0.1, (ACTION, OBSERVATION))
        logger = EpisodeLogger(str(self.episodes), format="jsonl")
        paths = []
        for _ in range(EPISODES):
            episode_id = logger.start_episode(
                environment_id="pi5-dev",
                xr_mode="trainer",
            )
            for _step in range(STEPS):
                command = rng.uniform(-1, 1, OBSERVATION)
                logger.log_step(
                    obs={"command": command.tolist()},
                    action={"command": (gain @ command).tolist()},
                    reward=0.5,
                    done=False,
                )
            path = logger.end_episode()
            assert path.name == f"{episode_id}.jsonl"
            paths.append(path)
        logger.close()
        return paths

    @cached_property
    def converted(self) -> ConvertReport:
        """The dataset of all episodes."""
        assert self.recorded
        return convert_directory_to_tfrecord(
            input_dir=str(self.episodes),
            output_dir=str(self.tfrecord),
            compress=True,
        )

    @cached_property
    def uploaded(self) -> str:
        """What `brain upload` said; the dataset is in the bucket."""
        assert self.converted.episodes == EPISODES
        return self.brain_command(
            *("upload", "--local-dir", self.tfrecord, "--gcs-bucket", BUCKET, "--gcs-prefix", PREFIX)
        )

    @cached_property
    def cloud_run(self) -> str:
        """What the cloud's trainer said; the run is in the bucket."""
        assert self.uploaded
        return self.run(*self.train_command)

    @property
    def train_command(self) -> tuple[str, ...]:
        """The seed's command at a small size."""
        return (
            *("-m", "cloud_trainer", "--data-path", DATA, "--output-dir", RUN, "--batch-size", "8"),
            *("--num-steps", str(TRAINED_STEPS), "--learning-rate", "1e-4", "--preset", "development"),
            *("--sequence-length", "16", "--set", f"model={SMALL}", "--set", "warmup_steps=1"),
        )

    @cached_property
    def exported(self) -> Path:
        """The bundle of the cloud's checkpoint."""
        assert self.cloud_run
        told = self.brain_command(
            *("export", "--checkpoint-path", RUN, "--output-path", "./models/core_model_inference"),
            *("--quantization", "fp16"),
        )
        return self.root / told.strip()

    @cached_property
    def compiled(self) -> Path:
        """The bundle with its Hailo form, from the stand-in for Hailo's compiler."""
        assert self.exported
        path = f"{install_compiler(self.root / 'bin').parent}:{os.environ['PATH']}"
        told = self.brain_command(
            *("export-hailo", "--checkpoint-path", "./models/core_model_inference"),
            *("--output-dir", "./models/core_model_hailo", "--calibration-dataset", self.tfrecord),
            PATH=path,
        )
        return self.root / told.strip()

    @cached_property
    def pipeline(self) -> list[dict[str, Any]]:
        """The reports of the seed's orchestration on the robot; its model is in the data directory."""
        assert self.recorded
        told = self.brain_command(
            *("pipeline", "--episodes-dir", self.episodes, "--tfrecord-dir", self.tfrecord, "--health"),
            *("--convert-tfrecord", "--train-local", "--trainer-data-path", self.tfrecord, "--export"),
            *("--steps", str(TRAINED_STEPS), "--batch-size", "8", "--sequence-length", "16", "--json"),
        )
        reports: list[dict[str, Any]] = json.loads(told)
        return reports

    @property
    def local_run(self) -> Path:
        """The checkpoints of the orchestration."""
        assert self.pipeline
        return self.brain / "checkpoints" / "pipeline"

    @property
    def local_model(self) -> Path:
        """Its bundle."""
        assert self.pipeline
        (path,) = (each for each in (self.brain / "models").iterdir() if each.is_dir() and not each.is_symlink())
        return path
