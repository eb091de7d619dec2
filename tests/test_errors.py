"""The error tree: one root, each with a status and a type of its own, each a problem document."""

import json

import pytest

from brain_service import errors
from brain_service.errors import BrainError, ConflictError, InvalidError

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_problem_document(kind: type[BrainError]) -> None:
    problem = kind("what and what next").problem()
    assert issubclass(kind, BrainError)
    assert json.loads(json.dumps(problem)) == problem
    assert problem["status"] == kind.status
    assert 400 <= kind.status < 600
    assert problem["detail"] == str(kind("what and what next"))


def test_types_are_unique_and_stand_in_the_drawn_tree() -> None:
    slugs = [kind.slug for kind in ALL]
    assert len(set(slugs)) == len(slugs)
    for kind in ALL:
        assert f"{kind.__name__} " in (errors.__doc__ or "")
        assert f"{kind.status}  {kind.slug}" in (errors.__doc__ or "")


def test_field_and_members_stand_beside_the_detail() -> None:
    assert InvalidError("x", field="observation/state").problem()["field"] == "observation/state"
    assert "field" not in InvalidError("x").problem()
    assert ConflictError("gap", next_step=3).problem()["next_step"] == 3
