"""The data report as one HTML page: no script, no external resource, readable on a phone, dark and light."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from brain_service.datasets.quality.document import QualityReport
from brain_service.datasets.quality.findings import Finding, count_of
from brain_service.datasets.quality.plots import ends_plot, histogram_plot, sparkline, states_plot
from brain_service.datasets.quality.ranges import Dimension
from brain_service.terminal import size_text

__all__ = ["html_document", "render_page"]

_EPISODES = 20
_FINDINGS = 40
_DIMENSIONS = 96
_WORDS = {"pass": "Pass", "warn": "Look before you train", "fail": "Do not train on this"}
_SEVERITIES = {"fail": "fail", "warn": "warning", "info": "note"}


def render_page(report: QualityReport) -> str:
    """Return the page. Long lists end (20 episodes, 40 findings, 96 dimensions) and say how many more."""
    body = "".join(
        (
            _head(report),
            _findings(report.findings),
            _episodes(report),
            _coverage(report),
            _time(report),
            _dimensions("Observation", report.observation),
            _dimensions("Action", report.action),
            _jumps(report),
            _images(report),
            _foot(report),
        )
    )
    return html_document(f"{report.dataset}: data report", body)


def html_document(title: str, body: str) -> str:
    """Return a whole page around the body, in the reports' style."""
    style = Path(__file__).with_name("page.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _head(report: QualityReport) -> str:
    outcomes, timing = report.outcomes, report.timing
    seconds = report.steps * timing.control_period_s
    tiles = {
        "episodes": f"{report.episodes:,}",
        "steps": f"{report.steps:,}",
        "recorded": _duration(seconds) if seconds else "unknown",
        "control period": f"{timing.control_period_s * 1e3:.4g} ms" if timing.control_period_s else "unknown",
        "length, usual": f"{outcomes.lengths.median:g} steps",
        "size": size_text(report.size_bytes),
        "profile": report.profile,
        **{f"{name} split": f"{size.episodes:,} episodes" for name, size in report.splits.items()},
    }
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
    return (
        f'<header><p class="over">Data report</p><h1>{escape(report.dataset)}</h1>'
        f'<p class="verdict {report.verdict}">{_WORDS[report.verdict]}: {_tally(report.findings)}</p></header>'
        f'<dl class="tiles">{cells}</dl>'
    )


def _tally(findings: list[Finding]) -> str:
    counts = {word: sum(finding.severity == key for finding in findings) for key, word in _SEVERITIES.items()}
    parts = [f"{count} {word}{'s' if count != 1 else ''}" for word, count in counts.items() if count]
    return ", ".join(parts) or "no findings"


def _findings(findings: list[Finding]) -> str:
    if not findings:
        return ""
    items = "".join(_finding(finding) for finding in findings[:_FINDINGS])
    more = len(findings) - _FINDINGS
    rest = f'<p class="more">and {more} more findings in report.json</p>' if more > 0 else ""
    return f'<section><h2>Findings</h2><ol class="findings">{items}</ol>{rest}</section>'


def _finding(finding: Finding) -> str:
    episodes = ""
    if finding.episodes:
        names = "".join(f"<li><code>{escape(name)}</code></li>" for name in finding.episodes[:_EPISODES])
        more = len(finding.episodes) - _EPISODES
        rest = f"<li>and {more:,} more in report.json</li>" if more > 0 else ""
        count = count_of(len(finding.episodes), "episode")
        order = ", the worst first" if len(finding.episodes) > 1 else ""
        episodes = f"<details><summary>{count} to look at{order}</summary><ul>{names}{rest}</ul></details>"
    return (
        f'<li class="{finding.severity}"><p><span class="badge">{_SEVERITIES[finding.severity]}</span> '
        f"<code>{finding.code}</code></p><p>{escape(finding.message)}</p>"
        f'<p class="fix">{escape(finding.fix[:1].upper() + finding.fix[1:])}.</p>{episodes}</li>'
    )


def _figure(svg: str, caption: str, alternative: str) -> str:
    """Return a plot with its caption; `alternative` says in words what the plot shows."""
    return (
        f'<figure><div class="plot" role="img" aria-label="{escape(alternative)}">{svg}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _episodes(report: QualityReport) -> str:
    outcomes = report.outcomes
    lengths, rewards = outcomes.lengths, outcomes.rewards
    said = f"{lengths.min} to {lengths.max} steps, half of the episodes up to {lengths.median:g}"
    earned = f"{rewards.return_min:.4g} to {rewards.return_max:.4g}, mean {rewards.return_mean:.4g}"
    plots = _figure(
        histogram_plot("lengths", lengths.histogram, "steps", "episodes"),
        f"Episode lengths: {said}.",
        f"Histogram of episode lengths, {said}",
    ) + _figure(
        histogram_plot("returns", rewards.returns, "sum of rewards", "episodes"),
        f"Returns: {earned}. Rewards a step: {rewards.min:.4g} to {rewards.max:.4g}.",
        f"Histogram of the episodes' sums of rewards, {earned}",
    )
    texts = outcomes.instructions
    asked = ""
    if texts:
        shown = dict(list(texts.items())[:_EPISODES])
        more = len(texts) - len(shown) + outcomes.more_instructions
        if more:
            shown[f"{more:,} more instructions"] = (
                report.episodes - outcomes.without_instruction - sum(shown.values())
            )
        if outcomes.without_instruction:
            shown[""] = outcomes.without_instruction
        asked = _shares("Instructions", shown, "episodes")
    shares = _shares("Ends", outcomes.ends, "episodes") + _shares("Control roles", outcomes.roles, "steps") + asked
    return f'<section><h2>Episodes</h2><div class="plots">{plots}</div><div class="plots">{shares}</div></section>'


def _shares(title: str, counts: Mapping[str, int], unit: str) -> str:
    total = max(1, sum(counts.values()))
    rows = "".join(
        f'<tr><th scope="row">{escape(name or "(none)")}</th><td>{count:,}</td><td>{count / total:.0%}</td>'
        f'<td class="bar"><span style="width:{100 * count / total:.1f}%"></span></td></tr>'
        for name, count in counts.items()
    )
    return f'<table class="shares"><caption>{title} ({unit})</caption><tbody>{rows}</tbody></table>'


def _coverage(report: QualityReport) -> str:
    coverage = report.coverage
    if not coverage.grid:
        return ""
    explained = sum(coverage.explained[:2])
    said = f"{coverage.occupied_share:.0%} of the {len(coverage.grid)} x {len(coverage.grid)} cells hold a state"
    axes = _weights(coverage.components[:2])
    far = ""
    if coverage.far_share is not None:
        far = f" {coverage.far_share:.1%} of the held-out states lie far from training (1 % is usual)."
    plots = _figure(
        states_plot("states", coverage),
        f"States over the two leading components ({explained:.0%} of the variance; {axes}). {said}.{far}",
        f"Map of sampled states over two principal components; {said}.{far}",
    )
    if coverage.end_points:
        limit = report.limits["min_hole_episodes"]
        hole = coverage.hole
        if hole is None:
            where = "too few episodes to look for holes"
        elif hole.expected_episodes > limit:
            where = f"a hole where about {hole.expected_episodes:.0f} episodes would be expected"
        else:
            where = f"no hole: the emptiest disc with data around it would hold {hole.expected_episodes:.0f}"
        names = _weights(coverage.end_components)
        plots += _figure(
            ends_plot("ends", coverage, limit),
            f"Where episodes end, {where} ({names}).",
            f"Scatter of the last observation of each episode over two principal components; {where}",
        )
    return f'<section><h2>Coverage</h2><div class="plots">{plots}</div></section>'


def _weights(components: list[str]) -> str:
    """Return what weighs most in each component, without the part's name, which is the same in all."""
    return "; ".join(
        f"component {i + 1}: {', '.join(name.removeprefix('observation/') for name in names.split(', '))}"
        for i, names in enumerate(components)
    )


def _time(report: QualityReport) -> str:
    timing = report.timing
    if not timing.control_period_s:
        return ""
    said = (
        f"{count_of(timing.gaps, 'gap')}, {timing.jitter_share:.1%} of the intervals off by more than "
        f"{report.limits['jitter_periods']:g} periods, the longest {timing.longest_interval_s * 1e3:.4g} ms"
    )
    plot = _figure(
        histogram_plot(
            "intervals",
            timing.intervals,
            "control periods",
            "intervals",
            report.limits["max_gap_periods"],
            rare=True,
        ),
        f"Intervals between steps: {said}. The last bin holds all that is longer.",
        f"Histogram of the intervals between steps in control periods; {said}",
    )
    return f'<section><h2>Time</h2><div class="plots">{plot}</div></section>'


def _table(caption: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _dimensions(title: str, dimensions: list[Dimension]) -> str:
    if not dimensions:
        return ""
    heads = ("dimension", "values", "mean", "std", "min", "1 %", "median", "99 %", "max", "at extreme", "")
    more = len(dimensions) - _DIMENSIONS
    rest = f'<p class="more">and {more} more dimensions in report.json</p>' if more > 0 else ""
    table = _table(f"{title}: ranges", heads, map(_dimension, dimensions[:_DIMENSIONS]))
    return f"<section><h2>{title}</h2>{table}{rest}</section>"


def _dimension(dimension: Dimension) -> str:
    figures = (dimension.mean, dimension.std, dimension.min, dimension.p01, dimension.median)
    cells = "".join(f"<td>{_number(value)}</td>" for value in (*figures, dimension.p99, dimension.max))
    mark = "constant" if dimension.is_constant else f"{dimension.nan_or_inf} NaN" if dimension.nan_or_inf else ""
    extreme = "-" if dimension.is_constant else f"{max(dimension.at_min, dimension.at_max):.1%}"
    name = escape(dimension.name.partition("/")[2])
    return (
        f'<tr><th scope="row">{name}</th><td>{sparkline(dimension.histogram)}</td>{cells}'
        f"<td>{extreme}</td><td>{mark}</td></tr>"
    )


def _jumps(report: QualityReport) -> str:
    jumps = report.jumps.dimensions
    if not jumps:
        return ""
    heads = ("dimension", "usual change", "largest", "robust z", "a jump from", "fastest, 1/s")
    rows = [
        f'<tr><th scope="row">{escape(jump.name.partition("/")[2])}</th><td>{_number(jump.median)}</td>'
        f"<td>{_number(jump.largest)}</td><td>{jump.largest_z:.1f}</td>"
        f"<td>{'switch' if jump.limit is None else _number(jump.limit)}</td>"
        f"<td>{_number(jump.largest_rate_per_s)}</td></tr>"
        for jump in jumps[:_DIMENSIONS]
    ]
    more = len(jumps) - _DIMENSIONS
    rest = f'<p class="more">and {more} more dimensions in report.json</p>' if more > 0 else ""
    return f"<section><h2>Action changes</h2>{_table('Action changes', heads, rows)}{rest}</section>"


def _images(report: QualityReport) -> str:
    images = report.outcomes.images
    if not images:
        return ""
    heads = ("feature", "images", "size", "smallest", "largest", "same as before", "longest still run")
    rows = [
        f'<tr><th scope="row">{escape(image.name.partition("/")[2])}</th><td>{image.count:,}</td>'
        f"<td>{size_text(image.total_bytes)}</td><td>{size_text(image.min_bytes)}</td><td>{size_text(image.max_bytes)}</td>"
        f"<td>{image.repeated / max(1, image.count):.1%}</td><td>{image.longest_frozen_run}</td></tr>"
        for image in images
    ]
    return f"<section><h2>Images</h2>{_table('Images', heads, rows)}</section>"


def _foot(report: QualityReport) -> str:
    repeats = report.repeats
    return (
        f"<footer><p>{repeats.duplicate_episodes:,} duplicate episodes; {repeats.frozen_steps:,} steps with the "
        f"observation of the step before (longest run {repeats.longest_frozen_run}); {report.quarantined:,} "
        "episodes quarantined at conversion. Moments and extremes are of all steps; quantiles, histograms and "
        f"coverage of {report.sampled_steps:,} evenly spaced ones. Values are float32, as a model sees them."
        "</p></footer>"
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
