#!/usr/bin/env python3
"""Optuna's gRPC storage proxy on an RDB storage: CreateNewTrial and GetTrial, of one study.

create_new_trial is what each worker of a distributed study calls for its next piece of work; it is stored before the
call returns.
"""

import os

import grpc
from optuna.storages import get_storage, run_grpc_proxy_server
from optuna.storages._grpc.auto_generated import api_pb2, api_pb2_grpc

import adapter

SERVICE = api_pb2.DESCRIPTOR.services_by_name["StorageService"].full_name


class Optuna(adapter.Adapter):
    packages = ("optuna", "grpcio", "protobuf", "SQLAlchemy")
    create_method = f"/{SERVICE}/CreateNewTrial"
    read_method = f"/{SERVICE}/GetTrial"
    database = "optuna.db"
    table = "trials"

    def serve(self, folder):
        storage = get_storage("sqlite:///" + os.path.join(folder, self.database))
        port = adapter.free_port()
        adapter.announce(folder, f"127.0.0.1:{port}")
        run_grpc_proxy_server(storage, host="127.0.0.1", port=port)

    def creations(self, address, count):
        with grpc.insecure_channel(address) as channel:
            study = api_pb2_grpc.StorageServiceStub(channel).CreateNewStudy(
                api_pb2.CreateNewStudyRequest(directions=[api_pb2.MINIMIZE], study_name="load"),
                wait_for_ready=True, timeout=60)
        return [api_pb2.CreateNewTrialRequest(study_id=study.study_id, template_trial_is_none=True).SerializeToString()]

    def created(self, request, reply):
        trial = api_pb2.CreateNewTrialReply.FromString(reply)
        adapter.require(trial.trial_id > 0, f"no trial: {trial}")
        return trial.trial_id

    def read_request(self, name):
        return api_pb2.GetTrialRequest(trial_id=name).SerializeToString()

    def read(self, request, reply):
        trial = api_pb2.GetTrialReply.FromString(reply).trial
        trial_id = api_pb2.GetTrialRequest.FromString(request).trial_id
        adapter.require(trial.trial_id == trial_id and trial.datetime_start, f"{trial_id} was asked for: {trial}")


if __name__ == "__main__":
    adapter.run(Optuna())
