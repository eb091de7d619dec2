"""The held-out loss: what it measures, when it ends a run, which checkpoint it keeps."""

import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import Array
from jax.scipy.stats import norm

from brain_service.datasets.loader import SequenceLoader, open_dataset
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.model.core import Params, init_params, unroll
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import init_carry
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.held_out import HeldOutLoss, Parts, Standing, held_out_parts, mean_loss
from brain_service.training.loop import train
from brain_service.training.metrics import read_metrics
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import WEIGHTS, Sequences, losses, normalise_batch
from brain_service.training.sharding import make_mesh
from tests.training.tasks import make_dataset, same_parameters, tiny
from tests.training.test_feed import put_infinity

pytestmark = pytest.mark.slow

# A learning rate that soon does harm: the best look is not the last one.
HARMFUL = {
    "steps": 40,
    "evaluate_every": 2,
    "patience": 2,
    "learning_rate": 0.3,
    "checkpoint_every": 3,
    "log_every": 1,
}


def test_a_look_that_is_no_better_counts_against_the_run() -> None:
    standing = Standing()
    for step, loss in ((10, 2.0), (20, 1.0), (30, 1.0), (40, float("nan")), (50, 1.5)):
        standing = standing.after(step, loss)
    assert standing == Standing(best_step=20, best_loss=1.0, stale=3)
    assert standing.after(60, 0.5) == Standing(60, 0.5, 0)
    assert Standing.from_json(standing.to_json()) == standing
    assert Standing.from_json(None) == Standing()
    # Not even as the first one: everything after it would be no better.
    assert Standing().after(10, float("nan")) == Standing(stale=1)
    assert Standing().after(10, float("nan")).after(20, 2.0) == Standing(20, 2.0, 0)


def test_the_held_out_loss_is_that_of_the_validation_episodes(dataset: Path) -> None:
    opened, model = open_dataset(dataset), tiny().model_config(3, 2)
    normaliser = Normaliser.from_statistics(opened.statistics)
    params = init_params(model, jax.random.key(0))
    found = HeldOutLoss(opened, model, normaliser, make_mesh())(params)
    loader = SequenceLoader(opened, "val", batch_size=2, sequence_length=None, seed=0, mode="episodes")
    assert loader.steps_per_epoch == 1
    sequences = normalise_batch(loader.batch(0), normaliser)

    @jax.jit
    def expected(params: Params, sequences: Sequences) -> Array:
        _, outputs = unroll(params, model, init_carry(model, 2), sequences.inputs)
        parts, mask = losses(outputs, sequences), sequences.loss_mask
        mean, deviation = outputs.action_mean[:, :, 0], jnp.exp(outputs.action_log_std[:, :, 0])
        nll = -norm.logpdf(sequences.action, mean, deviation).mean(-1) - 0.5 * jnp.log(2 * jnp.pi)
        return (nll * mask).sum() / mask.sum() + sum(
            WEIGHTS[name] * parts[name] for name in ("next_observation", "reward", "value")
        )

    assert found == pytest.approx(float(expected(params, sequences)), rel=1e-4)


def test_a_better_and_surer_policy_has_the_lower_held_out_loss() -> None:
    """By the loss whose gradient is followed it does not: the deviation, which weights it, falls too."""

    def judged(error: float) -> tuple[float, float]:
        zeros = jnp.zeros((1, 4))
        action, size = jnp.zeros((1, 4, 1, 2)), jnp.full((1, 4, 1, 2), error)
        outputs = StepOutputs(action + error, jnp.log(size), jnp.zeros((1, 4, 3)), zeros, zeros)
        inputs = StepInputs(jnp.zeros((1, 4, 3)), jnp.zeros((1, 4, 2)), zeros, zeros)
        sequences = Sequences(inputs, action[:, :, 0], zeros, zeros, *[zeros + 1] * 4)
        return float(losses(outputs, sequences)["loss"]), mean_loss([held_out_parts(outputs, sequences)])

    rough, fine = judged(0.3), judged(0.05)
    assert fine[1] < rough[1] and fine[0] > rough[0]


def test_a_batch_counts_as_much_as_what_is_judged_in_it() -> None:
    """Not as its steps: of a hundred of a policy and one of an expert it is the one that tells of the action."""

    def parts(action: float, judged: float) -> Parts:
        means = {"action": action, "next_observation": 1.0, "reward": 0.0, "value": 0.0}
        numbers = {"action": judged, "next_observation": 100.0, "reward": 100.0, "value": 0.0}
        return {name: (jnp.asarray(means[name]), jnp.asarray(numbers[name])) for name in means}

    assert mean_loss([parts(4.0, 1.0), parts(2.0, 3.0), parts(0.0, 0.0)]) == pytest.approx(2.5 + 0.5)


def test_a_number_that_is_not_finite_is_named_and_judges_nothing(dataset: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(dataset, tmp_path / "1.0.0"))
    episode, at = put_infinity(copied, "observation", 0, "val")
    opened, model = open_dataset(copied), tiny().model_config(3, 2)
    look = HeldOutLoss(opened, model, Normaliser.from_statistics(opened.statistics), make_mesh())
    with pytest.raises(CorruptDataError, match=f"of episode {episode} is not finite at its step {at};"):
        look(init_params(model, jax.random.key(0)))


@pytest.mark.long
def test_a_run_that_no_longer_gets_better_ends_and_keeps_its_best(dataset: Path, tmp_path: Path) -> None:
    done = train(dataset, tmp_path / "whole", tiny(**HARMFUL))
    assert done.stopped_early and done.completed and done.step < 40
    looks = {
        line["step"]: line["held_out_loss"] for line in read_metrics(tmp_path / "whole") if "held_out_loss" in line
    }
    assert done.best_loss == min(looks.values())
    assert looks[done.best_step or 0] == done.best_loss
    assert done.best_step is not None and done.step == done.best_step + 2 * HARMFUL["evaluate_every"]
    with Checkpoints(tmp_path / "whole") as checkpoints:
        assert done.best_step in checkpoints.steps() and done.step in checkpoints.steps()
    assert load_checkpoint(tmp_path / "whole").step == done.best_step

    again = train(dataset, tmp_path / "whole", tiny(**HARMFUL))
    assert (again.step, again.final_loss, again.stopped_early) == (done.step, None, True)

    # Stopped in between, it ends at the same step with the same best: the standing is in the checkpoint.
    asked = itertools.count()
    train(dataset, tmp_path / "parts", tiny(**HARMFUL), should_stop=lambda: next(asked) == done.step - 1)
    resumed = train(dataset, tmp_path / "parts", tiny(**HARMFUL))
    assert (resumed.step, resumed.best_step, resumed.best_loss) == (done.step, done.best_step, done.best_loss)
    assert resumed.resumed_from == done.step - 1
    assert same_parameters(tmp_path / "whole", tmp_path / "parts", done.step)


def test_without_held_out_episodes_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="at least two episodes") as caught:
        train(make_dataset(tmp_path, count=1), tmp_path / "run", tiny(evaluate_every=2))
    assert caught.value.field == "evaluate_every"
    assert not (tmp_path / "run").exists()
