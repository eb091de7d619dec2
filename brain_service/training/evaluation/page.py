"""The evaluation as one HTML page: no script, no external resource, readable on a phone, dark and light."""

from collections.abc import Iterable, Sequence
from html import escape

from brain_service.datasets.quality.page import html_document
from brain_service.training.evaluation.evaluate import EvaluationResult
from brain_service.training.evaluation.plots import (
    calibration_plot,
    elements_plot,
    histogram_plot,
    rollouts_plot,
)

__all__ = ["render_page"]

_ELEMENTS = 96


def render_page(result: EvaluationResult) -> str:
    """Return the page. Tables end after 96 elements and say how many more there are in evaluation.json."""
    body = "".join(
        (
            _head(result),
            _promotion(result),
            _actions(result),
            _calibration(result),
            _next_observation(result),
            _open_loop(result),
            _closed_loop(result),
            _foot(result),
        )
    )
    return html_document(f"{result.model} on {result.dataset}: evaluation", body)


def _head(result: EvaluationResult) -> str:
    better = result.relative_rmse < min(result.baseline_relative_rmse, result.repeat_relative_rmse)
    verdict = (
        ("pass", "Better than the mean action and than repeating the last one")
        if better
        else ("warn", "No better than a trivial baseline")
    )
    tiles = {
        "split": result.split,
        "episodes": f"{result.episodes:,}",
        "steps judged": f"{result.steps:,}",
        "training step": f"{result.step:,}",
        "action error": f"{result.relative_rmse:.2%} of the range",
        "mean action": f"{result.baseline_relative_rmse:.2%}",
        "repeat the last": f"{result.repeat_relative_rmse:.2%}",
        "skill": f"{result.skill:.3f}",
        "action NLL": f"{result.action_nll:.3f} nats",
    }
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
    return (
        f'<header><p class="over">Evaluation of the {escape(result.model)}</p>'
        f'<h1>{escape(result.dataset)}</h1><p class="verdict {verdict[0]}">{verdict[1]}</p></header>'
        f'<dl class="tiles">{cells}</dl>'
    )


def _promotion(result: EvaluationResult) -> str:
    verdict = result.promotion
    if verdict is None:
        return ""
    kind, word = ("pass", "Promoted") if verdict.promoted else ("fail", "Not promoted")
    return _section("Promotion", f'<p class="verdict {kind}">{word}: {escape(verdict.reason)}</p>')


def _actions(result: EvaluationResult) -> str:
    errors = result.action
    plot = _figure(
        elements_plot("actions", result.action_names, errors.rmse, errors.mean_rmse, errors.repeat_rmse),
        "Root mean square error of each action element, as a share of the mean action's.",
    )
    heads = ("element", "MAE", "RMSE", "mean action", "repeat", "NLL", "mean action", "repeat")
    columns = (
        errors.mae,
        errors.rmse,
        errors.mean_rmse,
        errors.repeat_rmse,
        errors.nll,
        errors.mean_nll,
        errors.repeat_nll,
    )
    table = _table("Action errors", heads, result.action_names, columns)
    return _section("Actions", f'<div class="plots">{plot}</div>{table}')


def _calibration(result: EvaluationResult) -> str:
    found = result.calibration
    if found is None:
        right = result.action.accuracy or []
        table = _table("Choices", ("element", "share right"), result.action_names, [right])
        return _section("Choices", table)
    said = ", ".join(f"{c:.0%} within {p:.0%}" for p, c in zip(found.levels, found.coverage, strict=True))
    plots = _figure(
        calibration_plot("coverage", found), f"Actions inside the predicted central intervals: {said}."
    ) + _figure(
        histogram_plot("places", found.histogram),
        "Where the action lies in the predicted distribution: flat is right, a hill is too timid, "
        "a valley too sure.",
    )
    heads = ("element", *(f"within {level:.0%}" for level in found.levels))
    table = _table("Calibration", heads, result.action_names, found.coverage_by_element)
    return _section("Calibration", f'<div class="plots">{plots}</div>{table}')


def _next_observation(result: EvaluationResult) -> str:
    found = result.next_observation
    said = (
        f"<p>Error of the next observation {found.rmse:.4g} standard deviations; "
        f"saying that nothing changes: {found.still_rmse:.4g}.</p>"
    )
    columns = (found.rmse_by_element, found.still_by_element)
    table = _table("Next observation", ("element", "RMSE", "nothing changes"), result.observation_names, columns)
    return _section("Next observation", said + table)


def _open_loop(result: EvaluationResult) -> str:
    found = result.open_loop
    if not found.horizons:
        return ""
    plot = _figure(
        rollouts_plot("rollouts", found),
        f"Open loop: drift from what was recorded, over {max(found.rollouts)} starts.",
    )
    names = [
        f"{horizon} steps ({count} rollouts)"
        for horizon, count in zip(found.horizons, found.rollouts, strict=True)
    ]
    heads = ("after", "observation", "nothing changes", "action")
    table = _table("Open loop", heads, names, (found.observation_rmse, found.still_rmse, found.action_rmse))
    return _section("Open loop", f'<div class="plots">{plot}</div>{table}')


def _closed_loop(result: EvaluationResult) -> str:
    found = result.closed_loop
    if found is None:
        return _section("Closed loop", "<p>No simulator was given: whether the policy works is not known.</p>")
    low, high = found.success_interval
    return _section(
        "Closed loop",
        f"<p>{found.success_rate:.0%} of {found.episodes} episodes succeeded (95 % interval {low:.0%} to "
        f"{high:.0%}); mean return {found.mean_return:.4g}, {found.mean_steps:.4g} steps.</p>",
    )


def _foot(result: EvaluationResult) -> str:
    left_out = (
        f" {result.left_out:,} episodes were left out: the model was trained on them." if result.left_out else ""
    )
    held_out = "" if result.split != "train" else " These are training episodes: the figures flatter the model."
    return (
        "<footer><p>Episodes were run whole, with the recorded past; actions count where an expert or an "
        f"intervention gave them.{left_out}{held_out}</p></footer>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _figure(svg: str, caption: str) -> str:
    return (
        f'<figure><div class="plot" role="img" aria-label="{escape(caption)}">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(caption: str, heads: Iterable[str], names: Sequence[str], columns: Iterable[Sequence[float]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{value:.4g}</td>" for value in values)}</tr>'
        for name, *values in list(zip(names, *columns, strict=True))[:_ELEMENTS]
    )
    more = len(names) - _ELEMENTS
    rest = f'<p class="more">and {more} more in evaluation.json</p>' if more > 0 else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{rest}"
    )
