import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.choices import choice_points, likeliest, share_of_choices


@given(choices=st.sampled_from([2, 5, 16]), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_a_choice_has_all_of_its_share_and_the_greatest_logit_wins(choices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, choices, (3, 2))
    action = jnp.asarray(choice_points(choices)[chosen])
    np.testing.assert_allclose(share_of_choices(action, choices), np.eye(choices)[chosen], atol=1e-5)
    logits = jnp.asarray(rng.permuted(np.arange(choices) * 0.01, axis=0) + np.zeros((3, 2, 1)), jnp.float32)
    expected = choice_points(choices)[np.asarray(logits).argmax(axis=-1)]
    np.testing.assert_allclose(likeliest(logits), expected, atol=1e-6)


def test_an_action_between_two_choices_is_shared_between_them() -> None:
    np.testing.assert_allclose(share_of_choices(jnp.asarray([-0.75]), 3)[0], [0.75, 0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(share_of_choices(jnp.asarray([0.0]), 2)[0], [0.5, 0.5], atol=1e-6)


def test_an_action_beyond_the_range_is_no_choice_at_all() -> None:
    assert float(jnp.abs(share_of_choices(jnp.asarray([5.0]), 3)).max()) == 0.0


def test_equal_logits_give_the_mean_of_their_choices() -> None:
    assert abs(float(likeliest(jnp.zeros((1, 1, 5)))[0, 0])) < 1e-6
    assert jax.eval_shape(likeliest, jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)).shape == (2, 3)
