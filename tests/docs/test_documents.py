"""Every document is followed, command by command, on a small real robot's data. Two trainings serve them all."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import Command
from tests.docs.markdown import Document, documents
from tests.docs.run import Run
from tests.docs.shell import Shell
from tests.docs.tables import RUN_ELSEWHERE
from tests.docs.world import World, empty_world, lived_world

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

FROM_NOTHING = {"README.md"}
"""Documents that a reader follows on a machine that has nothing yet. The others find a robot that has lived."""
WITH_CODE = [
    each
    for each in documents()
    if {block.language for block in each.blocks} & {"sh", "python", "json"} and each.name not in RUN_ELSEWHERE
]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A robot's home with recordings, a dataset, a checkpoint and a model."""

    def run(shell: Shell, text: str) -> None:
        Run(shell).command(Command("the lived world", 0, text))

    return lived_world(tmp_path_factory.mktemp("lived") / "world", run)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The world that the document is for."""
    document: Document = request.getfixturevalue("document")
    root = tmp_path / "world"
    if document.name in FROM_NOTHING:
        yield empty_world(root)
    else:
        lived: World = request.getfixturevalue("lived")
        yield lived.copy(root)


@pytest.mark.parametrize("document", WITH_CODE, ids=[each.name for each in WITH_CODE])
def test_a_document_does_what_it_says(document: Document, world: World) -> None:
    with world.shell() as shell:
        run = Run(shell)
        if any(re.search(r"gs://|--gcs-|\"vertex\"", block.text) for block in document.blocks):
            run.emulate_cloud()
        if document.name not in FROM_NOTHING and any(":8080" in block.text for block in document.blocks):
            run.serve("brain serve", ready="readyz?for=inference")
        run.document(document)
