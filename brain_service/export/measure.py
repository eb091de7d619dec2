"""Make the forms of a bundle, hold each against the float model, and refuse what is too far off."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np

from brain_service.errors import BrainError, CorruptDataError, InvalidError
from brain_service.export.forms import Form
from brain_service.export.manifest import PARITY_CAP, Parity
from brain_service.export.parity import Inputs, Reference, Stepper, difference, drive, measure_switch
from brain_service.model.config import CoreModelConfig
from brain_service.model.state import carry_shapes
from brain_service.training.normalisation import Normaliser

__all__ = ["FormsMade", "make_forms", "require_parity"]


@dataclass(frozen=True)
class FormsMade:
    """The files by name, and what the manifest tells of them; see `Manifest.parity` and `Manifest.measured`."""

    files: dict[str, bytes] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)


def make_forms(
    forms: Sequence[Form],
    config: CoreModelConfig,
    normaliser: Normaliser,
    stored: Mapping[str, np.ndarray[Any, Any]],
    quantisation: str,
    reference: Reference,
    begin: Callable[[str], None] = lambda _: None,
) -> FormsMade:
    """Compile each form from the stored parameters and measure it; `begin` is told what is begun.

    `reference` is the float model's run whatever the quantisation, so parity says what that costs.

    Raises:
        CorruptDataError: a form does not give the model's numbers.
        InvalidError: the quantised actions are too far off.
        UnavailableError: the model cannot be written in a form.
    """
    made, carry = FormsMade(), carry_shapes(config)
    limits = normaliser.action_low, normaliser.action_high
    steps: dict[str, Stepper] = {}
    for form in forms:
        begin(f"compiling {form.name}")
        module = form.load()
        data = module.compile_step(config, normaliser, stored)
        step = steps[form.name] = module.load_step(data, stored, carry)
        begin(f"comparing {form.name}")
        golden = drive(step, carry, Inputs.of(reference.golden))
        long = drive(step, carry, reference.long)
        made.files[form.file] = data
        made.parity[form.name] = require_parity(
            difference(golden.action, reference.golden.action, *limits), quantisation, f"the {form.name} form"
        )
        drift = difference(long.action, reference.long_action, *limits)
        made.measured[form.name] = {"drift": drift, "step_us": long.step_us}
        if not isfinite(drift):
            raise CorruptDataError(
                f"the {form.name} form gives actions that are not finite over {len(long.action)} steps"
            )
    pairs = list(combinations(steps.values(), 2))
    if pairs:
        begin("switching forms")
        worst = max(measure_switch(one, other, carry, reference, normaliser) for one, other in pairs)
        made.parity["switch"] = require_parity(worst, quantisation, "a session that changes its form")
    return made


def require_parity(measured: float, quantisation: str, what: str) -> Parity:
    """Return the parity with the cap as its bound.

    Raises:
        CorruptDataError: it is above the cap, or NaN, in float32.
        InvalidError: the same of a quantised model.
    """
    cap = PARITY_CAP[quantisation]
    # Written this way round so that NaN, which compares as false, is refused.
    if measured <= cap:
        return Parity(measured, cap)
    found = f"{what} differs from the model by {measured:.2e} of the action range, the bound is {cap:.0e}"
    error: BrainError
    if quantisation == "none":
        error = CorruptDataError(f"{found}; this is a fault of the compiler: try another version of its package")
    else:
        finer = "fp16 or none" if quantisation == "int8" else "none"
        error = InvalidError(
            f"{found}: {quantisation} costs this model too much; use {finer}", field="quantization"
        )
    raise error
