"""Conversion of many robots' episodes on many machines, to the dataset that one machine would make of them.

    sources   the logs of the fleet: folders on disk or below a bucket, found and fetched
    encode    one log becomes records in a part file                          on any machine, many at once
    plan      which episodes make up the version, and what each shard holds   in one place, from the index alone
    shard     one shard is cut out of the parts, and its steps are counted    on any machine, many at once
    publish   statistics and manifest of the whole; the version appears       in one place
    beam      these five as an Apache Beam pipeline

What two steps tell each other is small: records go through files, never through the runner.
"""

__all__: list[str] = []
