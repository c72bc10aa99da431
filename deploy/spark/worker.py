#!/usr/bin/env python3
"""Starts one Python worker of Beam, as a worker pool (--container_executable) or a Spark executor
(--environment_type=PROCESS) asks for it; what Beam's boot program does in a container, without one.

    worker.py --id=ID --provision_endpoint=HOST:PORT

The provision service gives it everything else. It ends with the pool or executor that started it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import Any

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as messages
from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
from google.protobuf import json_format, text_format

from pipeline.media import subprocesses

PROVISION_SECONDS = 60.0


def provision(endpoint: str, worker: str) -> dict[str, str]:
    """Asks the runner for the environment that Beam's Python worker needs."""
    with grpc.insecure_channel(endpoint) as channel:
        ask = services.ProvisionServiceStub(channel).GetProvisionInfo
        request = messages.GetProvisionInfoRequest()
        info = ask(request, metadata=(("worker_id", worker),), timeout=PROVISION_SECONDS).info
    found = {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    if info.logging_endpoint.url:
        found["LOGGING_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(info.logging_endpoint)
    return found


class Log(io.FileIO):
    """Standard error that drops text which a full disk does not take.

    Beam prints a failure before it answers the launcher, which would wait forever if printing raised.
    """

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)


def main() -> None:
    """Become the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    arguments, _ = parser.parse_known_args()  # the others of Beam's contract say the same again
    os.environ |= provision(arguments.provision_endpoint, arguments.id)
    os.dup2(2, 1)  # nobody reads a worker's standard output: once the pipe were full, it would hang
    sys.stderr = io.TextIOWrapper(Log(2, "w", closefd=False), errors="backslashreplace", write_through=True)
    subprocesses.die_with(os.getppid())  # from now on: the parent may be killed before Beam connects
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(["worker"])


if __name__ == "__main__":
    main()
