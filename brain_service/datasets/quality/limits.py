"""Every limit of the data report, in one place, with its reason."""

from dataclasses import asdict, dataclass, fields, replace

from brain_service.errors import InvalidError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a measure may be before it becomes a finding. Shares lie in [0, 1], periods are control periods."""

    # A recurrent model learns nothing from one step; below a tenth of the usual length something was cut off.
    min_length_steps: int = 2
    min_length_share: float = 0.1
    # Ten times the usual length is an episode that nobody ended; it would outweigh ten others.
    max_length_ratio: float = 10.0
    # A recurrent step is trained for one period. More than three periods without a step is a hole in what the
    # robot lived, not jitter.
    max_gap_periods: float = 3.0
    # Serving warns where its period is a fifth off the trained one; training data is held to the same.
    max_period_error: float = 0.2
    # An interval counts as jitter from a quarter of a period on; a tenth of such intervals is no outlier any more.
    jitter_periods: float = 0.25
    max_jitter_share: float = 0.1
    # An encoder hits its own extreme now and then; a fifth of all steps there is a limit or a clipped sensor.
    max_saturated_share: float = 0.2
    # Noise in the last bit makes equal readings rare: ten in a row (0.2 s at 50 Hz) are a dead sensor.
    max_frozen_steps: int = 10
    # A feature that often repeats by itself (a goal, a gripper) does not freeze; one that rarely does, can.
    usual_repeat_share: float = 0.2
    # Robust z: Gaussian action noise stays below 8 in a million steps.
    max_jump_z: float = 15.0
    # A jump must also be as large as this share of the action's range and stand out by this factor from the
    # largest 2 % of changes: switching controllers change by large steps all the time.
    min_jump_range_share: float = 0.2
    min_jump_ratio: float = 2.0
    # Units of the action a second; 0 = the robot has no rate limit that we know of.
    max_action_rate: float = 0.0
    # Episodes that a hole would hold if the density around it went on. The largest found in 570 random clouds of
    # 50 to 1,000 ends without a hole was 16, the median 8.
    min_hole_episodes: float = 15.0
    # By construction 1 % of training states lie farther from other episodes than the distance in question.
    max_far_share: float = 0.1
    # Ended by a crash or a lost connection: a few are life, a fifth is a broken set-up.
    max_recovered_share: float = 0.2

    def with_values(self, texts: dict[str, str]) -> "Limits":
        """Return these limits with some replaced, by name, from text as a command line gives it.

        Raises:
            InvalidError: an unknown name, or a value that is no finite number from 0 on.
        """
        known = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        values: dict[str, int | float] = {}
        for name, text in texts.items():
            if name not in known:
                raise InvalidError(f"limit {name!r} is none of {', '.join(known)}", field=name)
            try:
                values[name] = known[name](text)
            except ValueError as error:
                kind = "a whole number" if known[name] is int else "a number"
                raise InvalidError(f"limit {name}: {text!r} is not {kind}", field=name) from error
            if not 0 <= values[name] < float("inf"):
                raise InvalidError(f"limit {name}: {text!r} is not a finite number from 0 on", field=name)
        return replace(self, **values)  # type: ignore[arg-type]  # int or float as the field says

    def to_json(self) -> dict[str, int | float]:
        """Return the limits by name."""
        return asdict(self)
