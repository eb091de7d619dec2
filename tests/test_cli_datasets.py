"""`brain datasets` as a person meets it: the list, the report and its exit codes, damage by name."""

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.datasets.versions import list_versions
from tests.datasets.quality_cases import SOUND, WRONG, Case, build
from tests.fakes.gcs import fake_gcs
from tests.processes import told_nobody

GAP = next(case for case in WRONG if case.code == "time_gap")
LEAK = next(case for case in WRONG if case.code == "validation_leak")


@pytest.mark.parametrize("action", [[], ["ls"], ["report"], ["verify"]])
def test_help_shows_examples(action: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["datasets", *action, "--help"])
    assert done.value.code == 0
    assert f"brain datasets {action[0] if action else 'ls'}" in capsys.readouterr().out.partition("examples:")[2]


def test_versions_are_listed_with_what_they_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = build(tmp_path / "datasets", SOUND["nothing"])
    newer = made.with_name("1.0.10")
    made.rename(newer)
    made.mkdir()
    (made / "manifest.json").write_text("{")
    assert main(["datasets", "ls", "--data-dir", str(tmp_path), "--json"]) == 0
    old, new = json.loads(capsys.readouterr().out)
    assert (old["version"], old["newest"], new["version"], new["newest"]) == ("1.0.0", False, "1.0.10", True)
    assert "manifest.json" in old["error"]
    assert (new["error"], new["steps"], new["profile"], new["quarantined"]) == (None, 480, "oxe", 0)
    assert sum(new["episodes"].values()) == 12
    assert new["control_period_s"] == pytest.approx(0.05)
    assert main(["datasets", "ls", "--output-dir", str(tmp_path / "datasets")]) == 0
    head, damaged, row, why = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["dataset", "version", "episodes"]
    assert damaged.split() == ["episodes", "1.0.0", "damaged"]
    assert "manifest.json" in why
    assert row.split()[:2] == ["episodes", "1.0.10"]
    assert row.split()[-1] == "newest"
    assert "50 ms" in row


def test_a_place_without_datasets_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ls", "--output-dir", str(tmp_path)], ["report", str(tmp_path)], ["verify", str(tmp_path)]):
        assert main(["datasets", *arguments]) == 2
        problem = capsys.readouterr().err
        assert str(tmp_path) in problem
        assert len(problem.splitlines()) == 1


@pytest.mark.parametrize(("case", "code"), [(SOUND["nothing"], 0), (GAP, 1), (LEAK, 2)])
def test_a_report_stands_beside_the_version_and_exits_by_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case, code: int
) -> None:
    made = build(tmp_path, case)
    before = sorted(path.name for path in made.iterdir())
    assert main(["datasets", "report", str(tmp_path)]) == code
    said = capsys.readouterr().out
    assert said.startswith("episodes/1.0.0: 12 episodes (10 train, 2 val), 480 steps: ")
    assert case.code in said
    assert ("warn" in said or "FAIL" in said) == bool(code)
    assert all(name in said for name in case.episodes)
    # The version is as it was, and the report is no version.
    assert sorted(path.name for path in made.iterdir()) == before
    assert list_versions(made.parent) == ["1.0.0"]
    beside = made.parent / "1.0.0-report"
    assert sorted(path.name for path in beside.iterdir()) == ["report.html", "report.json"]
    document = json.loads((beside / "report.json").read_text())
    assert document["schema"] == "continuon-brain/data-report/1"
    assert document["verdict"] == ["pass", "warn", "fail"][code]
    assert main(["datasets", "report", str(made)]) == code


def test_the_page_goes_where_it_is_told_and_json_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = build(tmp_path, GAP)
    page = tmp_path / "pages" / "page.html"
    assert main(["datasets", "report", str(made), "--html", str(page), "--split", "train", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document["splits"]) == ["train"]
    assert page.read_text().startswith("<!doctype html>")
    assert not (made.parent / "1.0.0-report").exists()


def test_a_limit_is_an_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(build(tmp_path, GAP))
    assert main(["datasets", "report", made, "--limit", "max_gap_periods=9"]) == 0
    assert main(["datasets", "report", made, "--limit", "max_gap"]) == 2
    assert "max_gap_periods" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = build(tmp_path, SOUND["nothing"])
    (made.parent / "1.0.0-report").write_text("in the way")
    assert main(["datasets", "report", str(made)]) == 2
    assert "--html" in capsys.readouterr().err


def test_damage_is_named_and_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = build(tmp_path, SOUND["nothing"])
    shard = next(made.glob("*-train.tfrecord-*"))
    bad = bytearray(shard.read_bytes())
    bad[100] ^= 1
    shard.write_bytes(bad)
    assert main(["datasets", "verify", str(made)]) == 2
    said = capsys.readouterr().out
    assert f"DAMAGED  {shard.name} at byte 0: episode e01" in said.replace("e00", "e01")
    assert "11 of 12 episodes sound" in said
    assert main(["datasets", "verify", str(made), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["sound_episodes"] == 11
    assert {"dataset_info.json", "features.json", "statistics.json"} <= {d["file"] for d in document["damages"]}


def test_a_name_from_outside_moves_no_cursor_and_is_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "datasets"
    made = build(root, GAP)
    names = ["[red]", "a\x1b[2J\nb", "\udcff\u202e"]
    for name in names:
        shutil.copytree(made.parent, root / name)
    assert main(["datasets", "ls", "--output-dir", str(root)]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 + 1 + len(names)
    assert all(line.isprintable() for line in said.splitlines())
    assert all(shown in said for shown in ("[red]", r"a\x1b[2J\nb", r"\udcff\u202e"))
    main(["datasets", "verify", str(root / names[2])])
    assert main(["datasets", "verify", str(root / names[1] / "9.9.9")]) == 2
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).splitlines())
    assert len(captured.err.splitlines()) == 1
    main(["datasets", "verify", str(root / names[2]), "--json"])
    assert json.loads(capsys.readouterr().out)["dataset_dir"].endswith(f"{names[2]}/1.0.0")


def test_an_unreadable_folder_hides_no_other_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, SOUND["nothing"])
    (tmp_path / "closed").mkdir()
    # Root, as whom containers test, may read everything.
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert main(["datasets", "ls", "--output-dir", str(tmp_path), "--json"]) == 0
    closed, found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["error"]) == ("1.0.0", None)
    assert "Permission denied" in closed["error"]
    assert main(["datasets", "ls", "--output-dir", str(tmp_path)]) == 0
    assert "damaged: " in capsys.readouterr().out


def test_the_folder_one_stands_in_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(tmp_path, SOUND["nothing"])
    monkeypatch.chdir(made)
    assert main(["datasets", "report", "."]) == 0
    assert (made.parent / "1.0.0-report" / "report.html").is_file()
    main(["datasets", "verify", "."])
    assert "12 of 12 episodes sound" in capsys.readouterr().out
    monkeypatch.chdir(made.parent)
    assert main(["datasets", "ls", "--output-dir", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == made.parent.name
    assert main(["datasets", "report", ".", "--html", "."]) == 2
    assert "--html" in capsys.readouterr().err


@pytest.mark.parametrize(
    "action", [["ls", "--output-dir"], ["ls", "--json", "--output-dir"], ["report"], ["verify"]]
)
def test_a_reader_that_goes_is_no_error(tmp_path: Path, action: list[str]) -> None:
    build(tmp_path, GAP)
    command = [sys.executable, "-m", "brain_service", "datasets", *action, str(tmp_path)]
    assert told_nobody(command) == (141, b"")


def test_a_report_of_a_bucket_needs_a_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with fake_gcs() as server:
        server.make_bucket("robots")
        place = server.upload(build(tmp_path, GAP), "robots", "datasets/episodes/1.0.0")
        assert main(["datasets", "report", place]) == 2
        assert "use --html FILE or --json" in capsys.readouterr().err
        assert main(["datasets", "report", place, "--html", str(tmp_path / "page.html")]) == 1
        assert (tmp_path / "page.html").is_file()
    assert main(["datasets", "verify", place]) == 2
    assert "download the version" in capsys.readouterr().err
