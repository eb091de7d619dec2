"""The way to the cloud and back: datasets go up, a run is launched and watched, its bundle comes down.

Jobs use it from their worker processes; the daemon itself holds no connection to the cloud.
"""

__all__: list[str] = []
