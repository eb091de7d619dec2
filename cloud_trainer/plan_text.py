"""A plan as people read it."""

from collections.abc import Iterable, Mapping

from brain_service.cloud.chips import parse_topology
from brain_service.cloud.plans import PLANNING_FACTOR, Estimate, Plan

__all__ = ["comparison_text", "plan_text"]

GIB = 2**30


def plan_text(plan: Plan, cost: Estimate, steps: int) -> str:
    """Return a plan with its cost, one fact a line."""
    slice_ = parse_topology(plan.topology)
    chip = slice_.chip
    rows = plan.batch_size * plan.sequence_length
    lines = [
        f"{plan.preset} on {plan.topology} ({slice_.chips} chips), batch {plan.batch_size} x "
        f"{plan.sequence_length} steps, observations {plan.obs_dim}, actions {plan.action_dim}",
        f"{plan.parameters:,} parameters; {plan.fsdp} chips share a copy; compiled in {plan.compile_s:.0f} s",
        "",
        f"  memory a chip  {plan.hbm_bytes / GIB:8.2f} of {plan.hbm_limit_bytes / GIB:.2f} GiB "
        f"({plan.hbm_bytes / plan.hbm_limit_bytes:.0%}); arguments {plan.argument_bytes / GIB:.2f} (of them "
        f"parameters and moments {plan.state_bytes / GIB:.2f}), temporaries {plan.temporary_bytes / GIB:.2f}",
    ]
    if not plan.fits:
        return "\n".join([*lines, "  does not fit"])
    by_kind = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in plan.link_bytes.items()) or "none"
    lines += [
        f"  products       {plan.compute_s * 1e3:8.3f} ms: {plan.matmul_flops / 1e9:.1f} Gflop at "
        f"{chip.bf16_flops_per_s / 1e12:.0f} Tflop/s ({plan.model_flops / 1e9:.1f} by the source)",
        f"  memory         {plan.memory_s * 1e3:8.3f} ms: {plan.traffic_bytes / 1e6:.0f} MB at "
        f"{chip.hbm_bytes_per_s / 1e9:.0f} GB/s",
        f"  links          {plan.links_s * 1e3:8.3f} ms: {sum(plan.link_bytes.values()) / 1e6:.1f} MB at "
        f"{slice_.ici_bytes_per_s / 1e9:.0f} GB/s ({by_kind})",
        f"  a step takes   {plan.step_bound_s * 1e3:8.3f} ms at least, bound by {plan.bound_by}: at most "
        f"{1 / plan.step_bound_s:,.1f} steps/s, {rows / plan.step_bound_s:,.0f} tokens (time steps)/s",
        f"  kernels        {plan.kernels:8,d} one after the other; their start-up is in no bound",
        "",
        f"  {steps:,} steps: {cost.least_hours:.2f} h and ${cost.least_usd:.2f} at least; plan for "
        f"{cost.hours:.2f} h and ${cost.usd:.2f} ({PLANNING_FACTOR:g} x the bound, which no run has confirmed)",
        f"  {'Spot, half of the list' if cost.spot else 'on demand, list'} prices of {cost.prices_as_of}",
    ]
    return "\n".join(lines)


def comparison_text(plans: Iterable[Plan], best: Plan, failed: Mapping[int, str]) -> str:
    """Return a table of plans by the chips that share a copy, in GiB and milliseconds a step.

    The recommended one is marked, failures are last.
    """
    lines = [
        f"{'fsdp':>6}{'GiB a chip':>12}{'state GiB':>11}{'compute ms':>12}{'memory ms':>11}{'links ms':>10}"
        f"{'bound ms':>10}"
    ]
    for plan in plans:
        times = plan.compute_s, plan.memory_s, plan.links_s, plan.step_bound_s
        figures = "".join(f"{time * 1e3:{width}.3f}" for time, width in zip(times, (12, 11, 10, 10), strict=True))
        mark = " does not fit" if not plan.fits else "  <- recommended" if plan is best else ""
        lines.append(
            f"{plan.fsdp:6d}{plan.hbm_bytes / GIB:12.3f}{plan.state_bytes / GIB:11.3f}"
            f"{figures if plan.fits else '':43}{mark}"
        )
    lines += [f"{ways:6d}  {reason}" for ways, reason in failed.items()]
    return "\n".join(lines)
