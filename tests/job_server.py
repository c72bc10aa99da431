"""Stands in for the Java process that submits jobs to Spark; it takes every job, and does none.

    python tests/job_server.py FOLDER ... --job-port N ...      (the rest is what Beam says to Java)

Leaves in FOLDER its number as `pid`, and `cancelled` when a job is. As the file `how` there says, it ends its
parent with SIGTERM before it answers anybody, and goes on to say nothing (deaf), or while the parent waits to
hear that its job was taken (slow); or it says of each job that it is done (done).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent import futures
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc as service

FOLDER = Path(sys.argv[1])
HOW = (FOLDER / "how").read_text()
LAST = api.JobState.DONE if HOW == "done" else api.JobState.RUNNING


class Taken(service.JobServiceServicer):
    """Answers what `apache_beam.runners.portability.portable_runner` asks."""

    def DescribePipelineOptions(self, request, context):
        return api.DescribePipelineOptionsResponse()

    def Prepare(self, request, context):
        return api.PrepareJobResponse(preparation_id="job")

    def Run(self, request, context):
        if HOW == "slow":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1)
        return api.RunJobResponse(job_id="job")

    def GetState(self, request, context):
        return api.JobStateEvent(state=LAST)

    def GetStateStream(self, request, context):
        yield api.JobStateEvent(state=LAST)
        while context.is_active() and HOW != "done":
            time.sleep(0.1)

    def GetMessageStream(self, request, context):
        yield from ()

    def Cancel(self, request, context):
        (FOLDER / "cancelled").touch()
        return api.CancelJobResponse(state=api.JobState.CANCELLED)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # by which Beam ends it
    (FOLDER / "pid").write_text(str(os.getpid()))
    if HOW == "deaf":
        os.kill(os.getppid(), signal.SIGTERM)
    else:
        server = grpc.server(futures.ThreadPoolExecutor(8))
        service.add_JobServiceServicer_to_server(Taken(), server)
        server.add_insecure_port(f"localhost:{sys.argv[sys.argv.index('--job-port') + 1]}")
        server.start()
    time.sleep(120)


main()
