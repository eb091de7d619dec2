"""A training as a process that does nothing but keep the protocol: it counts its steps and looks at an objective.

It goes on from what it saved, saves at SIGTERM and leaves with 75, and refuses a learning rate of 0.5 with 78.
Each step that is made is a line in `steps.log`, so that one made twice shows.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    """Train for as long as it is let."""
    parser = argparse.ArgumentParser()
    for name in ("--data-path", "--output-dir"):
        parser.add_argument(name, required=True)
    for name in ("--num-steps", "--val", "--seed", "--batch-size"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    if given.learning_rate == 0.5:
        print("a rate of 0.5 is refused", file=sys.stderr)
        return 78
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    output = Path(given.output_dir)
    logs = output / "checkpoints" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    saved = output / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    metrics = logs / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    metrics.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
    while step < given.num_steps and not told:
        step += 1
        with (output / "steps.log").open("a") as file:
            file.write(f"{step}\n")
        if step % given.val == 0 or step == given.num_steps:
            # A rate that is best far from its start looks worse there: halving by the objective is not trivial.
            loss = abs(given.learning_rate - 0.2) + 1 / step
            with metrics.open("a") as file:
                file.write(json.dumps({"step": step, "held_out_loss": loss}) + "\n")
            saved.write_text(str(step))
            time.sleep(0.12)
    saved.write_text(str(step))
    return 0 if step == given.num_steps else 75


if __name__ == "__main__":
    sys.exit(main())
