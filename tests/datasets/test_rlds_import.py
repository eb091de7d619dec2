"""Any TFDS dataset of RLDS episodes comes in: ours bit for bit, one that TFDS wrote value for value."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from brain_service.datasets.columns import Profile, episode_columns
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.example import decode_example, encode_example
from brain_service.datasets.formats import ImportOptions, import_dataset
from brain_service.datasets.tfrecord import frame, read_records
from brain_service.episodes.episode import Episode
from brain_service.episodes.reader import read_episode
from brain_service.errors import BrainError, ConflictError, CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec
from tests.pictures import decode

from .recording import record
from .samples import RICH_SPEC, VECTOR_SPEC, Recipe, assert_equal_columns, make_episode, recipes

WRITER = Path(__file__).with_name("write_tfds.py")
SINGLE = EpisodeSpec(RICH_SPEC.observation, VECTOR_SPEC.action)


def convert(folder: Path, episodes: list[Episode], **options: Any) -> Path:
    record(folder / "in", episodes)
    return convert_directory_to_tfrecord(folder / "in", folder / "out", **options).dataset_dir


def foreign(folder: Path) -> Path:
    """Remove what only our converter writes."""
    for name in ("manifest.json", "statistics.json", "dataset_statistics.json"):
        (folder / name).unlink()
    return folder


def assert_same_steps(back: Episode, episode: Episode, names: Mapping[str, str]) -> None:
    assert set(back.action) == {names.get(path, path) for path in episode.action}
    for path, column in episode.observation.items():
        assert_equal_columns(back.observation[path], column)
    for path, column in episode.action.items():
        found = back.action[names.get(path, path)]
        assert np.asarray(found).tobytes() == np.asarray(column).tobytes()
    assert back.reward.tobytes() == episode.reward.tobytes()
    assert np.array_equal(back.is_terminal, episode.is_terminal)
    assert np.array_equal(back.timestamp_ns, episode.timestamp_ns)
    assert (back.control_role, back.end) == (episode.control_role, episode.end)


def several(spec: EpisodeSpec = SINGLE, **options: Any) -> list[Episode]:
    ends = ("terminated", "truncated")
    return [make_episode(f"e{n:02d}", 2 + n, spec=spec, end=ends[n % 2], **options) for n in range(6)]


@pytest.mark.parametrize("profile", ["oxe", "rlds"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("spec", [SINGLE, RICH_SPEC])
def test_ours_comes_back_as_it_was_and_converts_to_the_same_bytes(
    tmp_path: Path, profile: Profile, final: bool, spec: EpisodeSpec
) -> None:
    metadata = {"operator": "Ada", "tags": ["demo"], "robot_id": "arm-1", "safety": {"pii_cleared": True}}
    episodes = several(spec, final=final, metadata=metadata)
    folder = convert(tmp_path, episodes, profile=profile, val_fraction=0.3, shard_bytes=3000)
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert (report.episodes, report.quarantined, report.left_out) == (6, [], {})
    assert report.facts["profile"] == profile
    for episode in episodes:
        back = read_episode(tmp_path / "back" / f"{episode.episode_id}.jsonl")
        assert_same_steps(back, episode, {})
        assert {name: back.metadata[name] for name in metadata} == metadata
        assert back.metadata["language_instruction"] == "reach the puck"
        kept = back.final_observation
        assert (kept is not None) == (final and profile == "rlds")
    again = convert_directory_to_tfrecord(tmp_path / "back", tmp_path / "again", profile=profile, val_fraction=0.3)
    first, second = open_dataset(folder), open_dataset(again.dataset_dir)
    for split in first.splits:
        for index, entry in enumerate(first.entries(split)):
            assert second.entries(split)[index].episode_id == entry.episode_id
            mine, its = first.read(split, index), second.read(split, index)
            for name, column in mine.items():
                assert_equal_columns(its[name], column)


@pytest.mark.parametrize(("profile", "final"), [("oxe", False), ("rlds", True)])
def test_without_our_manifest_the_last_action_tells_the_profile(
    tmp_path: Path, profile: Profile, final: bool
) -> None:
    episodes = several(VECTOR_SPEC, final=final)
    folder = foreign(convert(tmp_path, episodes, profile=profile))
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert report.facts["profile"] == profile
    assert report.facts["profile_from"].startswith("guessed: the last action is")
    for episode in episodes:
        assert_same_steps(read_episode(tmp_path / "back" / f"{episode.episode_id}.jsonl"), episode, {})


def test_zeros_throughout_tell_nothing(tmp_path: Path) -> None:
    episodes = several(VECTOR_SPEC)
    for episode in episodes:
        episode.action["command"] = np.zeros_like(np.asarray(episode.action["command"]))
    report = import_dataset(foreign(convert(tmp_path, episodes)), tmp_path / "back", "rlds")
    assert report.facts["profile"] == "oxe"


def test_the_profile_can_be_given(tmp_path: Path) -> None:
    episodes = several(VECTOR_SPEC)
    folder = foreign(convert(tmp_path, episodes))
    report = import_dataset(folder, tmp_path / "back", "rlds", ImportOptions(profile="rlds"))
    assert report.facts == {"profile": "rlds", "profile_from": "as asked"}
    assert report.steps == sum(len(episode) - 1 for episode in episodes)
    back = read_episode(tmp_path / "back/e02.jsonl")
    state = np.asarray(episodes[2].observation["state"])
    assert back.final_observation is not None
    assert np.array_equal(np.asarray(back.final_observation["state"]), state[-1])
    assert (back.end, back.is_terminal.tolist()) == ("terminated", [False, False, True])


def test_an_episode_of_one_step_has_none_in_rlds(tmp_path: Path) -> None:
    folder = foreign(convert(tmp_path, [make_episode("one", 1), make_episode("two", 2)]))
    report = import_dataset(folder, tmp_path / "back", "rlds", ImportOptions(profile="rlds"))
    assert report.episodes == 1
    (left,) = report.quarantined
    assert "1 stored steps make none" in left["reason"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A dataset that TFDS wrote, with features of many classes, and what TFDS reads in it."""
    root = tmp_path_factory.mktemp("odd")
    done = subprocess.run(
        [sys.executable, WRITER, root, root / "values.npz"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(root / "values.npz") as values:
        return root, dict(values)


@pytest.mark.long
def test_a_dataset_of_tfds_own_comes_in(odd: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, values = odd
    report = import_dataset(root, tmp_path, "rlds", ImportOptions(fps=5.0))
    assert (report.episodes, report.steps, report.quarantined) == (5, 20, [])
    assert report.left_out.keys() == {"observation/points", "observation/packed", "language_embedding"}
    assert "differs in length" in report.left_out["observation/points"]
    assert "zlib" in report.left_out["observation/packed"]
    for split, count in (("train", 3), ("test", 2)):
        for index in range(count):
            back = read_episode(tmp_path / f"odd_robot-1.0.0-{split}-{index:06d}.jsonl")
            place = f"{split}/{index}"
            number = int(values[f"{place}/operator"])
            assert back.metadata["source_metadata"] == {
                "file_path": f"/data/{number}.h5",
                "success": number != 2,
                "operator": number,
            }
            assert back.metadata["language_instruction"] == f"fetch {number}"
            assert back.end == ("truncated" if number == 2 else "terminated")
            assert np.diff(back.timestamp_ns).tolist() == [200_000_000] * (len(back) - 1)
            for name in ("state", "pose", "gripper", "count", "level", "mode"):
                expected = values[f"{place}/{name}"]
                found = np.asarray(back.observation[name])
                assert found.shape == expected.shape
                assert np.array_equal(found, expected.astype(found.dtype)), name
            assert back.observation["name"] == [f"n{t}" for t in range(len(back))]
            for image, pixels in zip(back.observation["image"], values[f"{place}/image"], strict=True):
                assert isinstance(image, bytes)
                assert np.array_equal(decode(image), pixels)
            assert back.spec.observation["any_size"].shape == (4 + number, 5, 3)
            assert np.array_equal(np.asarray(back.action["command"]), values[f"{place}/action"])


@pytest.mark.long
def test_two_commands_lead_from_a_foreign_folder_to_training(
    odd: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, values = odd

    def brain(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "brain_service", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    episodes, out = str(tmp_path / "episodes"), str(tmp_path / "datasets")
    chosen = ("--observation", "state,gripper", "--action", "action", "--json")
    told = brain("import-dataset", "--from", str(root), "--format", "rlds", "--output-dir", episodes, *chosen)
    assert json.loads(told)["episodes"] == 5
    brain("convert", "--input-dir", episodes, "--output-dir", out)
    dataset = open_dataset(tmp_path / "datasets")
    found = {
        entry.episode_id: dataset.vectors(split, index)
        for split in dataset.splits
        for index, entry in enumerate(dataset.entries(split))
    }
    assert len(found) == 5
    for index in range(3):
        vectors = found[f"odd_robot-1.0.0-train-{index:06d}"]
        place = f"train/{index}"
        expected = np.column_stack([values[f"{place}/gripper"], values[f"{place}/state"]]).astype(np.float32)
        assert np.array_equal(vectors.observation, expected)
        assert np.array_equal(vectors.action, values[f"{place}/action"])


@pytest.mark.parametrize(
    "template", ["{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{SPLIT}.{SHARD_X_OF_Y}.rec"]
)
def test_shards_of_another_template(tmp_path: Path, template: str) -> None:
    folder = foreign(convert(tmp_path, several(VECTOR_SPEC), val_fraction=0.0, shard_bytes=2000))
    info = json.loads((folder / "dataset_info.json").read_text())
    lengths = info["splits"][0]["shardLengths"]
    assert len(lengths) > 1
    for index in range(len(lengths)):
        place = f"{index:05d}-of-{len(lengths):05d}"
        name = template.format(
            DATASET="episodes",
            SPLIT="train",
            FILEFORMAT="tfrecord",
            SHARD_INDEX=f"{index:05d}",
            SHARD_X_OF_Y=place,
        )
        (folder / f"episodes-train.tfrecord-{index:05d}").rename(folder / name)
    info["splits"][0]["filepathTemplate"] = template
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert import_dataset(folder, tmp_path / "back", "rlds").episodes == 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return foreign(convert(tmp_path / "source", several(VECTOR_SPEC), val_fraction=0.0, shard_bytes=1500))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def step_features(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = document["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    return found["features"]  # type: ignore[no-any-return]


def edit_features(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(folder / "features.json", lambda document: change(step_features(document)))


def test_a_second_import_adds_what_is_new(folder: Path, tmp_path: Path) -> None:
    import_dataset(folder, tmp_path / "back", "rlds")
    files = {path.name: path.read_bytes() for path in (tmp_path / "back").glob("*.jsonl")}
    (tmp_path / "back/e03.jsonl").unlink()
    again = import_dataset(folder, tmp_path / "back", "rlds")
    assert (again.episodes, again.skipped) == (1, 5)
    assert {path.name for path in (tmp_path / "back").iterdir()} == set(files)


def test_an_episode_of_another_origin_is_not_touched(folder: Path, tmp_path: Path) -> None:
    record(tmp_path / "back", [make_episode("e03", 4, seed=9)])
    before = (tmp_path / "back/e03.jsonl").read_bytes()
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert report.episodes == 5
    (left,) = report.quarantined
    assert left["place"] == "e03"
    assert "holds another episode" in left["reason"]
    assert (tmp_path / "back/e03.jsonl").read_bytes() == before


def test_a_killed_import_is_taken_up_again(folder: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from brain_service.datasets.formats import import_dataset\n"
        "import_dataset(sys.argv[1], sys.argv[2], 'rlds', progress=lambda done, total: done == 4 and os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", script, folder, tmp_path / "back"], check=False)
    assert done.returncode == 9
    assert len(list((tmp_path / "back").glob("*.jsonl"))) == 4
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert (report.skipped, report.episodes) == (4, 2)
    assert len(list((tmp_path / "back").iterdir())) == 6


def test_two_imports_into_one_directory(folder: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        if done == 2:
            with pytest.raises(ConflictError, match="another process"):
                import_dataset(folder, tmp_path / "back", "rlds")

    assert import_dataset(folder, tmp_path / "back", "rlds", progress=second).episodes == 6


REFUSED: dict[str, tuple[Callable[[Path], object], type[BrainError], str]] = {
    "no info": (lambda f: (f / "dataset_info.json").unlink(), NotFoundError, "no TFDS dataset"),
    "no features": (lambda f: (f / "features.json").unlink(), NotFoundError, r"features\.json is missing"),
    "no JSON": (lambda f: (f / "features.json").write_text("{"), CorruptDataError, r"features\.json"),
    "a list": (lambda f: (f / "features.json").write_text("[]"), CorruptDataError, "not a JSON object"),
    "no splits": (
        lambda f: edit(f / "dataset_info.json", lambda d: d.pop("splits")),
        CorruptDataError,
        "its splits lack or garble 'splits'",
    ),
    "no lengths": (
        lambda f: edit(f / "dataset_info.json", lambda d: d["splits"][0].pop("shardLengths")),
        CorruptDataError,
        "shardLengths",
    ),
    "an unknown template": (
        lambda f: edit(f / "dataset_info.json", lambda d: d["splits"][0].update(filepathTemplate="{0}-{NAME}")),
        CorruptDataError,
        "its splits lack or garble",
    ),
    "a garbled shape": (
        lambda f: edit_features(f, lambda s: s["action"]["tensor"].update(shape={"dimensions": ["two"]})),
        CorruptDataError,
        "not as TFDS writes it",
    ),
    "array_record": (
        lambda f: edit(f / "dataset_info.json", lambda d: d.update(fileFormat="array_record")),
        InvalidError,
        "array_record, not tfrecord",
    ),
    "no steps": (
        lambda f: edit(f / "features.json", lambda d: d["featuresDict"]["features"].pop("steps")),
        InvalidError,
        "no RLDS dataset; its features are episode_metadata",
    ),
    "no action": (lambda f: edit_features(f, lambda s: s.pop("action")), InvalidError, "no action"),
    "an unknown class": (
        lambda f: edit_features(f, lambda s: s["action"].update(pythonClassName="my.features.Torque")),
        InvalidError,
        "no action .*action: its class 'Torque' is none of",
    ),
    "an open shape": (
        lambda f: edit_features(f, lambda s: s["action"]["tensor"].update(shape={"dimensions": ["-1"]})),
        InvalidError,
        r"its shape \[-1\] is open",
    ),
    "a complex dtype": (
        lambda f: edit_features(f, lambda s: s["action"]["tensor"].update(dtype="complex64")),
        InvalidError,
        "dtype complex64",
    ),
    "ragged": (
        lambda f: edit_features(
            f,
            lambda s: s.update(
                action={
                    "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                    "sequence": {"length": "-1", "feature": s["action"]},
                }
            ),
        ),
        InvalidError,
        "a Sequence within a step differs in length",
    ),
    "another shape": (
        lambda f: edit_features(f, lambda s: s["action"]["tensor"].update(shape={"dimensions": ["3"]})),
        InvalidError,
        "steps/action should hold",
    ),
    "another kind": (
        lambda f: edit_features(f, lambda s: s["action"]["tensor"].update(dtype="string", shape={})),
        InvalidError,
        "steps/action should hold .* of text",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path, case: str) -> None:
    damage, error, message = REFUSED[case]
    damage(folder)
    with pytest.raises(error, match=message):
        import_dataset(folder, tmp_path / "back", "rlds")
    assert not list((tmp_path / "back").glob("*"))


def test_an_unknown_class_among_others_is_left_out_or_named(folder: Path, tmp_path: Path) -> None:
    observation = {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video", "sequence": {}}
    edit_features(folder, lambda s: s["observation"]["featuresDict"]["features"].update(clip=observation))
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert "its class 'Video'" in report.left_out["observation/clip"]
    with pytest.raises(InvalidError, match="observation/clip: its class 'Video'"):
        import_dataset(folder, tmp_path / "other", "rlds", ImportOptions(observation=("clip",)))
    for fps in (0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300):
        with pytest.raises(InvalidError, match=r"fps .* is not between 0\.001 and 1e\+06"):
            import_dataset(folder, tmp_path / "other", "rlds", ImportOptions(fps=fps))
    with pytest.raises(InvalidError, match="'hdf5' is none of lerobot, rlds"):
        import_dataset(folder, tmp_path / "other", "hdf5")


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.tfrecord-*"))


SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda shard: shard.unlink(), "the file is missing; fetch it again"),
    "cut": (lambda shard: shard.write_bytes(shard.read_bytes()[:-3]), "needs .* bytes, the file holds"),
    "empty": (lambda shard: shard.write_bytes(b""), "holds 0 episodes, dataset_info.json says"),
    "flipped": (
        lambda shard: shard.write_bytes(shard.read_bytes()[:40] + b"\xff" + shard.read_bytes()[41:]),
        "at byte 0 .* fails its checksum",
    ),
    "no file": (
        lambda shard: shard.rename(shard.with_name("moved")).with_name(shard.name).mkdir(),
        "Is a directory",
    ),
    "no example": (lambda shard: shard.write_bytes(frame(b"\xff\xff")), "not a tf.train.Example"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_damaged_shard_is_named_and_the_others_come_in(folder: Path, tmp_path: Path, case: str) -> None:
    damage, message = SHARDS[case]
    shard = first_shard(folder)
    lengths = json.loads((folder / "dataset_info.json").read_text())["splits"][0]["shardLengths"]
    damage(shard)
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert report.episodes == 6 - int(lengths[0])
    assert sum(item["episodes"] for item in report.quarantined) == int(lengths[0])
    assert shard.name in report.quarantined[0]["place"]
    assert re.search(message, report.quarantined[0]["reason"]), report.quarantined


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the examples of the first shard, with right checksums."""
    shard = first_shard(folder)
    records = []
    for payload in read_records(shard):
        values = decode_example(payload, "")
        change(values)
        records.append(frame(encode_example(values)))
    shard.write_bytes(b"".join(records))


def _terminal_first(values: dict[str, Any]) -> None:
    values["steps/is_terminal"] = values["steps/is_terminal"] * 0
    values["steps/is_terminal"][0] = 1


def _not_a_number(values: dict[str, Any]) -> None:
    values["steps/observation/state"] = values["steps/observation/state"] * np.float32("nan")


EXAMPLES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no feature": (lambda v: v.pop("steps/observation/state"), "steps/observation/state .* found nothing"),
    "fewer values": (lambda v: v.update({"steps/action": v["steps/action"][:-1]}), "steps/action should hold"),
    "no step fields": (
        lambda v: [v.pop(name) for name in ("steps/is_first", "steps/is_last", "steps/action")],
        "neither is_first, is_last nor an action",
    ),
    "a terminal in the middle": (_terminal_first, "step 1: "),
    "not a number": (_not_a_number, "step 0: observation/state: holds NaN"),
    "no UTF-8": (
        lambda v: v.update({"steps/control_role": [b"\xff"] * len(v["steps/control_role"])}),
        "steps/control_role is no UTF-8 text",
    ),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_an_episode_that_cannot_be_taken_is_left_out(folder: Path, tmp_path: Path, case: str) -> None:
    change, message = EXAMPLES[case]
    rewrite(folder, change)
    report = import_dataset(folder, tmp_path / "back", "rlds")
    assert report.quarantined
    assert report.episodes == 6 - len(report.quarantined)
    for item in report.quarantined:
        assert re.search(message, item["reason"]), item
    assert len(list((tmp_path / "back").iterdir())) == report.episodes


def test_a_name_folder_or_a_root_will_do_but_not_two_datasets(folder: Path, tmp_path: Path) -> None:
    assert import_dataset(folder.parent, tmp_path / "1", "rlds").episodes == 6
    assert import_dataset(folder.parents[1], tmp_path / "2", "rlds").episodes == 6
    shutil.copytree(folder.parent, folder.parents[1] / "other")
    with pytest.raises(InvalidError, match="several datasets, episodes, other"):
        import_dataset(folder.parents[1], tmp_path / "3", "rlds")


@given(recipe=recipes)
@hypothesis_settings(max_examples=20)
def test_any_episode_survives_the_way_out_and_back(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
) -> None:
    # Names that capture refuses are for its own tests.
    episode = replace(recipe, episode_id="e0").build()
    root = tmp_path_factory.mktemp("law")
    folder = foreign(convert(root, [episode], profile="rlds"))
    profile: Profile = "rlds" if episode.final_observation is not None else "oxe"
    import_dataset(folder, root / "back", "rlds", ImportOptions(profile=profile))
    back = read_episode(root / "back" / f"{episode.episode_id}.jsonl")
    mine, its = episode_columns(episode, "rlds"), episode_columns(back, "rlds")
    assert mine.keys() == its.keys()
    for name, column in mine.items():
        assert_equal_columns(its[name], column)
    shutil.rmtree(root)
