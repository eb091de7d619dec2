"""Search for training settings: here with child processes, or as a job of Vertex AI, over the same space.

space     what may vary, read from a TOML file; trial n of a seed is always the same
state     what is known of the trials, a line at a time, so that a killed search goes on
search    which trial goes how far next: random, or asynchronous successive halving
process   one trial as a process that stops at a step and goes on from there
local     the search with such processes
report    table, plot and the best trial's command
vertex    the HyperparameterTuningJob
trial     what runs in its containers
"""

__all__: list[str] = []
