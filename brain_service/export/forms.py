"""The compiled forms that a bundle may hold: a table, each with a module that is imported when it is used.

A form's module offers `compile_step(config, normaliser, params) -> bytes` and `load_step(data, params, carry) ->
Stepper`; `params` are flat and as the bundle stores them.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from brain_service.errors import InvalidError, UnavailableError
from brain_service.export.bundle import JAX_STEP, ONNX_MODEL
from brain_service.export.parity import Stepper
from brain_service.model.config import CoreModelConfig
from brain_service.training.normalisation import Normaliser

__all__ = ["FORMS", "Form", "FormModule", "choose_forms", "default_forms"]

StoredParams = Mapping[str, np.ndarray[Any, Any]]


class FormModule(Protocol):
    """What a form's module offers."""

    def compile_step(self, config: CoreModelConfig, normaliser: Normaliser, params: StoredParams) -> bytes:
        """Return the policy step in this form, for one row.

        Raises:
            UnavailableError: the model cannot be written in this form.
            CorruptDataError: what was written is not what the form allows.
        """

    def load_step(self, data: bytes, params: StoredParams, carry: Mapping[str, int]) -> Stepper:
        """Return the step ready to run, as a robot's backend runs it; `carry` gives sizes by name, in order.

        Raises:
            UnavailableError: the runtime cannot load it.
        """


@dataclass(frozen=True, slots=True)
class Form:
    """A form by the name that `parity` and the command line use: its file, module and the packages it needs."""

    name: str
    file: str
    module: str
    needs: Sequence[str] = ()

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]

    def load(self) -> FormModule:
        """Import the form's module."""
        return cast(FormModule, importlib.import_module(self.module))


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("jax", JAX_STEP, "brain_service.export.jax_form"),
        Form("onnx", ONNX_MODEL, "brain_service.export.onnx_form", ("onnx", "onnxruntime")),
    )
}
"""`jax` is in every bundle: the reference to which a robot falls back, and what later checks compare with."""


def default_forms() -> tuple[str, ...]:
    """Return the forms that can be made here."""
    return tuple(name for name, form in FORMS.items() if not form.missing())


def choose_forms(names: Sequence[str]) -> list[Form]:
    """Return these forms in the table's order, `jax` always among them.

    Raises:
        InvalidError: a name is not in the table.
        UnavailableError: a package that one needs is not installed; the message says how to install it.
    """
    unknown = sorted(set(names) - FORMS.keys())
    if unknown:
        raise InvalidError(f"form {unknown[0]!r} is not known; use {', '.join(FORMS)}", field="format")
    chosen = [form for name, form in FORMS.items() if name == "jax" or name in names]
    for form in chosen:
        if missing := form.missing():
            raise UnavailableError(
                f"the {form.name} form needs {' and '.join(missing)}: pip install {' '.join(missing)}; "
                "or leave that form out"
            )
    return chosen
