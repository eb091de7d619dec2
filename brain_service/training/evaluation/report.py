"""The evaluation's two files."""

import json
from pathlib import Path

from brain_service.durable import write_atomic
from brain_service.errors import UnavailableError
from brain_service.training.evaluation.evaluate import EvaluationResult
from brain_service.training.evaluation.page import render_page

__all__ = ["HTML_FILE", "JSON_FILE", "write_report"]

JSON_FILE = "evaluation.json"
HTML_FILE = "evaluation.html"


def write_report(folder: Path, result: EvaluationResult) -> Path:
    """Write `evaluation.json` and `evaluation.html` into the folder, made if missing; return the page's path.

    Raises:
        UnavailableError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / JSON_FILE, (json.dumps(result.to_json(), indent=1) + "\n").encode())
        write_atomic(folder / HTML_FILE, render_page(result).encode())
    except OSError as error:
        raise UnavailableError(f"evaluation report in {folder}: {error}; choose another folder") from error
    return folder / HTML_FILE
