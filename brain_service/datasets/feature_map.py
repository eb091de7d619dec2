"""Which features of a foreign dataset become observation and action of ours, and under which names.

Foreign names nest with `/` (TFDS) or `.` (LeRobot): `observation/state`, `action.arm`. A bare `action` becomes
`action/command`, a bare `observation` becomes `observation/state`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature

__all__ = ["ChosenFeatures", "FeatureMap"]

_BARE = {"observation": "state", "action": "command"}


@dataclass(frozen=True)
class ChosenFeatures:
    """The foreign name of each of our features, `{path: name}`, and why others are left out, `{name: reason}`."""

    observation: dict[str, str]
    action: dict[str, str]
    left_out: dict[str, str]

    def names(self) -> set[str]:
        """Return the foreign names that are taken."""
        return {*self.observation.values(), *self.action.values()}

    def spec(self, known: Mapping[str, Feature]) -> EpisodeSpec:
        """Return the features of a step.

        Raises:
            InvalidError: a name is a feature and also the folder of others, or an action is an image.
        """
        return EpisodeSpec.from_json(
            {
                part: {path: known[name].to_json() for path, name in names.items()}
                for part, names in (("observation", self.observation), ("action", self.action))
            }
        )


@dataclass(frozen=True)
class FeatureMap:
    """What the caller asks for by name; None takes everything below `observation` or `action`."""

    observation: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    separator: str = field(default="/", kw_only=True)

    def choose(
        self, known: Mapping[str, Feature], unreadable: Mapping[str, str], used: frozenset[str]
    ) -> ChosenFeatures:
        """Divide the `known` features; `unreadable` gives reasons, `used` are those with a meaning of their own.

        Raises:
            InvalidError: a name that was asked for is unknown or unreadable, or nothing is left for a part.
        """
        parts: dict[str, dict[str, str]] = {}
        for part, asked in (("observation", self.observation), ("action", self.action)):
            names = (
                [name for name in known if self._is_below(name, part) and name not in used]
                if asked is None
                else [self._find(name, part, known, unreadable) for name in asked]
            )
            parts[part] = {self._path(name, part): name for name in names}
            if len(parts[part]) < len(names):
                raise InvalidError(f"{', '.join(names)}: two of these would have one name; choose with --{part}")
            if not names:
                reasons = "".join(f"; {name}: {why}" for name, why in unreadable.items())
                raise InvalidError(
                    f"the dataset has no {part} that can be read; name features of {', '.join(known) or 'none'} "
                    f"with --{part}{reasons}",
                    field=part,
                )
        taken = {*parts["observation"].values(), *parts["action"].values(), *used}
        left_out = dict(unreadable) | {
            name: "neither observation nor action was asked to hold it"
            if self.observation is not None or self.action is not None
            else "lies below neither observation nor action; take it with --observation or --action"
            for name in known
            if name not in taken
        }
        return ChosenFeatures(parts["observation"], parts["action"], left_out)

    def _is_below(self, name: str, part: str) -> bool:
        return name == part or name.startswith(part + self.separator)

    def _find(self, name: str, part: str, known: Mapping[str, Feature], unreadable: Mapping[str, str]) -> str:
        for candidate in (name, f"{part}{self.separator}{name}"):
            if candidate in known:
                return candidate
            if candidate in unreadable:
                raise InvalidError(f"{candidate}: {unreadable[candidate]}", field=part)
        raise InvalidError(f"--{part} {name}: there is no such feature; known: {', '.join(known)}", field=part)

    def _path(self, name: str, part: str) -> str:
        if name == part:
            return _BARE[part]
        return name.removeprefix(part + self.separator).replace(self.separator, "/")
