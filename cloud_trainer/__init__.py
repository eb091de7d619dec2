"""The training job that runs away from the robot; the service launches it by module name and never imports it."""

__all__: list[str] = []
