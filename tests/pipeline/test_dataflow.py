"""The job that Dataflow would be given: small, without media or rows, and fused where no core may wait."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.flow.recipe import FlowRecipe
from pipeline.job import graph, runner
from pipeline.job.run import MOST_PARTS
from pipeline.job.settings import Job
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe
from pipeline.sources import FetchOptions
from pipeline.sources.recipe import FetchRecipe

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "deploy" / "dataflow" / "README.md"
IMAGE = "us-central1-docker.pkg.dev/my-project/images/quovadis:1"
GROUP = "beam:transform:group_by_key:v1"
SECRET = "http://user:secret@proxy.example:3128"
FLAGS = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=us-central1",
    "--temp_location=gs://my-bucket/tmp",
    f"--sdk_container_image={IMAGE}",
    "--sdk_location=container",
    "--number_of_worker_harness_threads=1",
    "--dry_run=True",
]


def _graph(parts: int, flags: Iterable[str] = FLAGS, source: str = "youtube") -> beam.Pipeline:
    """Built as the command builds it."""
    job = Job(
        output="gs://my-bucket/root",
        work="gs://my-bucket/work",
        sources=(source,),
        recipe=Recipe(FetchRecipe(), EncodeRecipe(), FlowRecipe()),
        fetch=FetchOptions(proxy=SECRET),
        ffmpeg="ffmpeg",
        generation="00000",
        keep_sources=True,
    )
    root = graph.pipeline(runner.beam_options(flags))
    graph.build(root, job, [f"plan/00000/{number:05d}.parquet" for number in range(parts)])
    return root


@pytest.fixture(scope="module")
def proto() -> beam_runner_api_pb2.Pipeline:
    return _graph(MOST_PARTS).to_runner_api()


def _steps(proto: beam_runner_api_pb2.Pipeline) -> dict[str, beam_runner_api_pb2.PTransform]:
    return {t.unique_name: t for t in proto.components.transforms.values() if not t.subtransforms}


def _before(proto: beam_runner_api_pb2.Pipeline, name: str) -> list[str]:
    """The steps that feed one, as far back as data goes without a shuffle."""
    steps = _steps(proto)
    made_by = {output: n for n, step in steps.items() for output in step.outputs.values()}
    feeding = [made_by[i] for i in steps[name].inputs.values()]
    near = [n for n in feeding if steps[n].spec.urn != GROUP]
    return near + [further for n in near for further in _before(proto, n)]


def test_the_graph_stays_far_below_the_limit_for_any_number_of_clips(proto):
    assert len(proto.SerializeToString()) < 200_000  # Dataflow takes 20 MB; a thousand parts is the most
    assert len(_graph(1).to_runner_api().SerializeToString()) > 10_000


def test_what_is_created_is_the_names_of_the_plan_s_parts(proto):
    sources = [n for n, step in _steps(proto).items() if step.spec.urn == "beam:transform:impulse:v1"]
    assert sources == ["Plan parts/Impulse"]
    assert not [n for n in _steps(proto) if "Read" in n and "Read tasks" not in n]


def test_fetch_encode_and_flow_of_a_video_are_one_step_with_no_shuffle_in_it(proto):
    steps = _steps(proto)
    work = [n for n in steps if n.startswith("Fetch, encode, flow")]
    assert work == ["Fetch, encode, flow/ParDo(_Process)"]
    assert steps[work[0]].spec.urn == "beam:transform:pardo:v1"
    shuffles = sorted(n for n, step in steps.items() if step.spec.urn == GROUP)
    assert shuffles == [
        "Pack shards/GroupByKey",
        "Read tasks/Spread parts",
    ]
    assert not [n for n in steps if "Random" in n], "a shuffle that cannot be repeated in part"
    assert "Read tasks/FlatMap(read_tasks)" in _before(proto, work[0])  # a part of the plan is a lane
    assert work[0] in _before(proto, "Pack shards/GroupByKey")


def test_videos_that_need_no_network_are_spread_before_the_step_and_not_in_it():
    proto = _graph(3, source="archive:" + str(PAGE)).to_runner_api()
    step = "Fetch, encode, flow/ParDo(_Process)"
    assert "Read tasks/FlatMap(read_tasks)" not in _before(proto, step)
    assert step in _before(proto, "Pack shards/GroupByKey")


def test_every_step_has_one_environment_that_asks_for_the_memory_of_the_longest_clip(proto):
    """One: a second would be a second set of worker processes."""
    environments = proto.components.environments
    used = {step.environment_id for step in _steps(proto).values()} - {""}
    assert len(used) == 1
    hints = environments[used.pop()].resource_hints
    assert dict(hints) == {"beam:resources:min_ram_bytes:v1": b"4000000000"}
    other = _graph(1, [*FLAGS, "--resource_hint=min_ram=8GB"]).to_runner_api()
    found = {bytes(v) for e in other.components.environments.values() for v in e.resource_hints.values()}
    assert found == {b"8000000000"}


def test_no_secret_stands_in_a_step_s_name(proto):
    assert not [n for n in _steps(proto) if "secret" in n or "Job(" in n]


def test_beam_s_own_dry_run_takes_the_job():
    pytest.importorskip("google.cloud.dataflow", reason="Beam's dry run needs the gcp extra")
    root = _graph(MOST_PARTS)
    assert root.run().state == "DONE"
    environments = root.runner.proto_pipeline.components.environments.values()
    images = {beam_runner_api_pb2.DockerPayload.FromString(e.payload).container_image for e in environments}
    assert images == {IMAGE}


def test_the_options_of_the_page_are_beam_s_and_the_command_s():
    command = re.search(r"quovadis prepare \\\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert command is not None
    given = set(re.findall(r"--[a-z_-]+", command[1]))
    helped = subprocess.run(
        [sys.executable, "-m", "pipeline", "prepare", "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = set(re.findall(r"--[a-z-]+", helped))
    assert {"--manifest", "--output", "--work", "--source"} <= given & ours
    parser = _BeamArgumentParser(allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    assert given - ours <= set(parser._option_string_actions)


def test_the_container_is_of_the_oldest_beam_that_setup_allows_and_names_its_python():
    text = (REPOSITORY / "deploy" / "dataflow" / "Dockerfile").read_text()
    least = re.search(r'"apache-beam>=([\d.]+)"', (REPOSITORY / "setup.py").read_text())
    assert least is not None
    assert re.search(rf"ARG BEAM={re.escape(least[1])}(\.0)?\n", text)
    assert "FROM apache/beam_python${PYTHON}_sdk:${BEAM}" in text


def test_setup_file_s_archive_holds_all_that_a_worker_needs(tmp_path):
    """Built by Beam's own function for --setup_file."""
    from apache_beam.runners.portability.stager import Stager

    copy, out = tmp_path / "copy", tmp_path / "out"
    out.mkdir()
    ask = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        [*ask, "pipeline", "trainer", "*.*", "LICENSE"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    there = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    for name in there:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy / name)
    with tarfile.open(Stager._build_setup_package(str(copy / "setup.py"), str(out))) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert {name for name in there if name.startswith("pipeline/")} <= held
    assert {"pipeline/job/transforms.py", "pipeline/report/page.html", "setup.py", "README.md"} <= held
