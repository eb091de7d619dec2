"""Evaluation on held-out episodes: errors, calibration, open and closed loop, the report, and promotion."""

from brain_service.training.evaluation.closed_loop import ClosedLoop, Drive, Policy, Simulator, drive_closed_loop
from brain_service.training.evaluation.evaluate import EvaluationResult, evaluate, evaluate_subject
from brain_service.training.evaluation.page import render_page
from brain_service.training.evaluation.promotion import Promotion, judge_promotion
from brain_service.training.evaluation.report import write_report
from brain_service.training.evaluation.subject import Subject

__all__ = [
    "ClosedLoop",
    "Drive",
    "EvaluationResult",
    "Policy",
    "Promotion",
    "Simulator",
    "Subject",
    "drive_closed_loop",
    "evaluate",
    "evaluate_subject",
    "judge_promotion",
    "render_page",
    "write_report",
]
