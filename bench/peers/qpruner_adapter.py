#!/usr/bin/env python3
"""qpruner-server: CreateJob and GetJob."""

import os
import pathlib
import subprocess
import tempfile

from google.protobuf import descriptor_pb2, message_factory

import adapter

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVER = pathlib.Path(os.environ.get("QPRUNER_BIN_DIR", ROOT / "build/release/bin")) / "qpruner-server"


def messages():
    """The classes of the service's messages by full name, made from the .proto files."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["protoc", "-I", ROOT / "proto", "-I", ROOT / "third_party/googleapis", "--include_imports",
                        "--descriptor_set_out", file.name, "qpruner/v1/job_service.proto"], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    return message_factory.GetMessages(files.file)


class QPruner(adapter.Adapter):
    packages = ()
    create_method = "/qpruner.v1.JobService/CreateJob"
    read_method = "/qpruner.v1.JobService/GetJob"
    database = "data/store/jobs.sqlite"
    table = "jobs"

    def __init__(self):
        self._messages = {}

    def message(self, name):
        self._messages = self._messages or messages()
        return self._messages["qpruner.v1." + name]

    def serve(self, folder):
        address = f"127.0.0.1:{adapter.free_port()}"
        adapter.announce(folder, address)
        os.execv(SERVER, [str(SERVER), "--listen", address, "--data-dir", os.path.join(folder, "data"),
                          "--metrics-listen", "off"])

    def creations(self, address, count):
        request = self.message("CreateJobRequest")()
        request.job.spec.model.uri = "builtin://stories260k"
        request.job.spec.search.max_average_bits = 8
        request.job.spec.search.max_trials = 8
        # As the client library does: a repeated call would answer the same job.
        for i in range(count):
            request.request_id = f"request-{i}"
            yield request.SerializeToString()

    def created(self, request, reply):
        job = self.message("CompressionJob").FromString(reply)
        adapter.require(job.name and job.spec.search.max_trials == 8, f"no job: {job}")
        return job.name

    def read_request(self, name):
        return self.message("GetJobRequest")(name=name).SerializeToString()

    def read(self, request, reply):
        job = self.message("CompressionJob").FromString(reply)
        name = self.message("GetJobRequest").FromString(request).name
        adapter.require(job.name == name and job.spec.search.max_trials == 8, f"{name} was asked for: {job}")


if __name__ == "__main__":
    adapter.run(QPruner())
