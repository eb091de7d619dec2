"""Training on images: what reaches the step, the same bits after a stop, and a task that only a camera shows."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.datasets.access import Steps
from brain_service.datasets.dataset import open_dataset
from brain_service.errors import InvalidError
from brain_service.pixels import ImageInput
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.config import TrainConfig
from brain_service.training.evaluation import Subject, evaluate
from brain_service.training.evaluation.closed_loop import drive_closed_loop
from brain_service.training.evaluation.predictions import predictions
from brain_service.training.evaluation.rollouts import make_rollout
from brain_service.training.feed import Feed
from brain_service.training.loop import train
from brain_service.training.normalisation import Normaliser
from brain_service.training.sanity import SanityOptions, sanity_check
from brain_service.training.sharding import make_mesh
from tests.training.camera import SIDE, SMALL_EYE, make_scenes
from tests.training.tasks import TINY, same_parameters, tiny

IMAGE = ImageInput("camera", (SIDE, SIDE, 3), (SIDE // 2, SIDE // 2, 3))


def seeing(**settings: Any) -> TrainConfig:
    return tiny(image="auto", image_size="8x8", model=TINY | SMALL_EYE, **settings)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    train(scenes, folder, seeing(evaluate_every=2))
    return folder


def test_pixels_travel_as_bytes_and_reach_the_step_as_they_were_recorded(scenes: Path) -> None:
    dataset = open_dataset(scenes)
    feed = Feed(dataset, seeing(), Normaliser.from_statistics(dataset.statistics), make_mesh(), IMAGE)
    batch = feed.batch(0)
    assert batch.inputs.image is not None and batch.inputs.image.dtype == jnp.uint8
    for piece in feed._loader.pieces(0):
        for place, file in enumerate(
            dataset.images("train", "camera", Steps(piece.episode, piece.first, piece.first + piece.steps))
        ):
            found = np.asarray(batch.inputs.image[piece.row, piece.column + place])
            assert np.array_equal(found, IMAGE.pixels(file))


def test_a_checkpoint_says_which_image_its_model_sees(run: Path, scenes: Path) -> None:
    loaded = load_checkpoint(run)
    assert loaded.image == IMAGE
    assert loaded.config.image_shape == IMAGE.shape
    assert loaded.meta["held_out"]["best_loss"] is not None
    found = evaluate(run, scenes)
    assert found.episodes == len(open_dataset(scenes).entries("val")) and np.isfinite(found.relative_rmse)


def test_a_run_with_images_that_was_stopped_goes_on_to_the_same_bits(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    train(scenes, tmp_path / "b", seeing(evaluate_every=2), hooks=stopping_after(3))
    done = train(scenes, tmp_path / "b", seeing(evaluate_every=2))
    assert done.resumed_from is not None and 0 < done.resumed_from < 6
    assert same_parameters(run, tmp_path / "b", 6)


def stopping_after(steps: int) -> Any:
    from brain_service.training.loop import Hooks

    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > steps

    return Hooks(should_stop=stop)


def test_another_image_is_another_run(run: Path, scenes: Path) -> None:
    with pytest.raises(InvalidError, match=r"made with another image \(shape\)") as refused:
        train(scenes, run, tiny(image="camera", image_size="16x16", model=TINY | SMALL_EYE, evaluate_every=2))
    assert refused.value.field == "image"
    with pytest.raises(InvalidError, match="made with another image"):
        train(scenes, run, tiny(image="none", model=TINY | SMALL_EYE, evaluate_every=2))
    # Named or found by itself, it is the same image.
    again = train(scenes, run, tiny(image="camera", image_size="8x8", model=TINY | SMALL_EYE, evaluate_every=2))
    assert again.resumed_from == 6


def test_a_model_without_an_image_trains_on_the_rest(scenes: Path, tmp_path: Path) -> None:
    train(scenes, tmp_path / "c", tiny(image="none", steps=1))
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.image is None and loaded.config.image_shape == ()


def test_images_are_not_imagined_the_camera_stands_still(run: Path, scenes: Path) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(run), "run")
    episode = next(iter(predictions(subject, open_dataset(scenes), "val")))
    assert episode.inputs.image is not None
    last = episode.length - 1
    rollout = make_rollout(subject.config)
    _, action = rollout(subject.params, episode.inputs, jnp.asarray([last]))
    np.testing.assert_allclose(action[0, : last + 1], episode.mean, atol=1e-5)
    frozen = episode.inputs.image.at[5:].set(episode.inputs.image[4])
    for images in (episode.inputs.image, frozen):
        _, found = rollout(subject.params, episode.inputs._replace(image=images), jnp.asarray([4]))
        action = found if images is episode.inputs.image else action
    np.testing.assert_array_equal(action[0], found[0])


def test_a_simulator_of_vectors_cannot_drive_a_model_that_sees(run: Path) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(run), "run")
    with pytest.raises(InvalidError, match="sees the image 'camera'"):
        drive_closed_loop(subject, lambda *_: pytest.fail("it was driven"), 1)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"image": ""}, "image"),
        ({"image_size": "64"}, "image_size"),
        ({"image_size": "64x"}, "image_size"),
        ({"model": {"image_shape": [8, 8, 3]}}, "image_size"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        TrainConfig.from_dict(settings)
    assert refused.value.field == field


def test_an_image_that_is_not_there_is_refused_before_a_step(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"'wrist' is none of the observation's images \(camera\)"):
        train(scenes, tmp_path / "d", tiny(image="wrist"))
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_the_sanity_check_sees(scenes: Path) -> None:
    report = sanity_check(SanityOptions(rlds_dir=scenes, max_steps=3, sequence_length=8, image="auto"))
    assert report.passed, report.lines()
    assert "image camera of 16 x 16 pixels" in report.checks[0].details


@pytest.mark.slow
@pytest.mark.long
def test_what_only_the_camera_shows_is_learned_by_the_model_that_sees(tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path, 60, length=24)
    found = {}
    for image in ("camera", "none"):
        config = tiny(
            image=image,
            steps=400,
            batch_size=16,
            sequence_length=12,
            warmup_steps=20,
            checkpoint_every=400,
            observation_noise=0.0,
            model=TINY | SMALL_EYE | {"d_e": 64, "d_h": 32},
        )
        train(scenes, tmp_path / image, config)
        jax.clear_caches()
        found[image] = evaluate(tmp_path / image, scenes)
    assert found["none"].skill < 0.1, "there is another way than the camera to know"
    assert found["camera"].skill > 0.9
    assert found["camera"].relative_rmse < 0.3 * found["none"].relative_rmse
