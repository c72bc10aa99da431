"""A call becomes a run, which says what is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from published import Row, prepare
from small_runs import make_list

from pipeline.job import run, runner, summary
from pipeline.job.settings import Settings
from pipeline.lists import plan
from pipeline.outcome import CallError
from pipeline.storage import open_storage


@pytest.mark.parametrize("named", [[], ["--runner=DirectRunner"], ["--runner", "DataflowRunner"]])
@pytest.mark.parametrize("misspelt", [["--buget", "5"], ["--no-keep-source"], ["wave", "1000"]])
def test_an_option_that_nobody_knows_is_refused(named, misspelt):
    with pytest.raises(CallError, match=f"unknown option {misspelt[0]}; did you mean --"):
        runner.beam_options([*named, *misspelt])


def test_a_job_server_may_know_more_and_what_it_gets_unread_is_told(capsys):
    runner.beam_options(["--runner=SparkRunner", "--buget", "5", "--spark_version=3"])
    assert (
        capsys.readouterr().err
        == "prepare: --buget 5 unknown here, passed on to SparkRunner unread; did you mean --budget?\n"
    )
    with pytest.raises(CallError, match="unknown option wave; did you mean --wave"):
        runner.beam_options(["--runner=SparkRunner", "wave", "1000", "--spark_version=3"])
    runner.beam_options(
        ["--runner=PortableRunner", "--job_endpoint=localhost:1", "--environment_type=LOOPBACK"]
    )
    assert capsys.readouterr().err == ""


def test_what_is_left_after_a_wave_counts_every_video_with_a_row_to_come(tmp_path: Path):
    root = tmp_path / "root"
    prepare(root, (Row("aaaaaaaaaa1"), Row("bbbbbbbbbb2"))).publish()  # of list.csv
    rows = [
        f"walk,{name},{start},{start + 2},train,0"
        for start in (1, 5)
        for name in ("aaaaaaaaaa1", "bbbbbbbbbb2")
    ]
    moved = make_list(tmp_path / "moved.csv", rows)
    settings = Settings((str(moved),), str(root), plan=plan.PlanOptions(unique="clip"))
    planned = run.make_plan(settings)
    said = summary.remaining(planned, open_storage(root), budget=2)
    assert said.endswith("; 2 rows of 2 videos are left, about 60 min at this budget")


def test_a_list_of_videos_to_exclude_need_not_tell_their_split(tmp_path: Path):
    lists = {"train": "x,y,z", "withdrawn": "x", "ours": "y"}
    for name, videos in lists.items():
        rows = [f"{video},0,10,{'holdout,' * (name == 'ours')}\n" for video in videos.split(",")]
        header = f"youtube_id,time_start,time_end,{'split,' * (name == 'ours')}\n"
        (tmp_path / f"{name}.csv").write_text(header + "".join(rows))
    given = {name: str(tmp_path / f"{name}.csv") for name in lists}
    settings = Settings(
        (given["train"],), str(tmp_path / "root"), exclude=(given["withdrawn"], given["ours"])
    )
    planned = run.make_plan(settings)
    assert planned["excluded_for"].to_pylist() == ["listed", "listed", None]
