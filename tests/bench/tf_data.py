"""The peer of our loader: tf.data on the same shards, its windows in the same size of batch.

    python -m tests.bench.tf_data VERSION_FOLDER OBSERVATION ACTION T B

Prints two lines: a pass right after the files' pages were dropped from memory, and the one behind it. Each has the
steps a second of the clock, and a second of processor time over all threads; the graph is traced before. A process
of its own: TensorFlow takes 600 MB to import.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def drop_pages(folder: Path) -> None:
    """Take the pages of a folder's files out of this machine's memory."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def batches(folder: Path, observation: int, action: int, length: int, batch_size: int) -> "tf.data.Dataset":
    """Return one epoch: examples parsed in parallel, cut into windows, shuffled through a buffer, batched."""
    import tensorflow as tf

    sizes = {"steps/observation/state": observation, "steps/action": action, "steps/reward": 1}
    features = {name: tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True) for name in sizes}

    def windows(record: "tf.Tensor") -> "tf.data.Dataset":
        example = tf.io.parse_single_example(record, features)
        cut = {}
        for name, size in sizes.items():
            steps = tf.reshape(example[name], [-1, size])
            missing = -tf.shape(steps)[0] % length
            cut[name] = tf.reshape(tf.pad(steps, [[0, missing], [0, 0]]), [-1, length, size])
        return tf.data.Dataset.from_tensor_slices(cut)

    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.glob("*.tfrecord-*"))))
    records = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE)
    cut = records.interleave(windows, cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE)
    return cut.shuffle(1024).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Run a cold and a warm epoch and print the rate of each."""
    folder, (observation, action, length, batch_size) = Path(sys.argv[1]), map(int, sys.argv[2:])
    epoch = batches(folder, observation, action, length, batch_size)
    next(iter(epoch.take(1).as_numpy_iterator()))
    drop_pages(folder)
    for _ in range(2):
        begun_s, used_s, count = time.perf_counter(), time.process_time(), 0
        for batch in epoch.as_numpy_iterator():
            count += batch["steps/reward"].shape[0] * length
        print(count / (time.perf_counter() - begun_s), count / (time.process_time() - used_s))


if __name__ == "__main__":
    main()
