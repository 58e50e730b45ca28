#!/usr/bin/env python3
"""OSS Vizier's service: CreateTrial and GetTrial, of one study.

A trial is what its workers take up and evaluate, stored as REQUESTED until one does: a queued piece of work, as a job is
here. CreateStudy reads all studies of its owner first and is slower.
"""

import os
import threading

import grpc
from vizier import pyvizier
from vizier._src.service import study_pb2, vizier_service_pb2, vizier_service_pb2_grpc
from vizier.service import pyvizier as service_pyvizier
from vizier.service import servers

import adapter

SERVICE = vizier_service_pb2.DESCRIPTOR.services_by_name["VizierService"].full_name


class Vizier(adapter.Adapter):
    packages = ("google-vizier", "grpcio", "protobuf", "SQLAlchemy")
    create_method = f"/{SERVICE}/CreateTrial"
    read_method = f"/{SERVICE}/GetTrial"
    database = "vizier.db"
    table = "trials"

    def serve(self, folder):
        server = servers.DefaultVizierServer(
            host="127.0.0.1", database_url="sqlite:///" + os.path.join(folder, self.database))
        adapter.announce(folder, server.endpoint)
        threading.Event().wait()

    def creations(self, address, count):
        config = service_pyvizier.StudyConfig(algorithm="RANDOM_SEARCH")
        config.search_space.root.add_float_param("bits", 2.0, 8.0)
        config.metric_information.append(
            pyvizier.MetricInformation("loss", goal=pyvizier.ObjectiveMetricGoal.MINIMIZE))
        study = study_pb2.Study(display_name="load", study_spec=config.to_proto())
        with grpc.insecure_channel(address) as channel:
            stub = vizier_service_pb2_grpc.VizierServiceStub(channel)
            study = stub.CreateStudy(vizier_service_pb2.CreateStudyRequest(parent="owners/load", study=study),
                                     wait_for_ready=True, timeout=60)
        trial = study_pb2.Trial()
        parameter = trial.parameters.add(parameter_id="bits")
        parameter.value.number_value = 4.0
        return [vizier_service_pb2.CreateTrialRequest(parent=study.name, trial=trial).SerializeToString()]

    def created(self, request, reply):
        trial = study_pb2.Trial.FromString(reply)
        adapter.require(trial.name and trial.state == study_pb2.Trial.State.REQUESTED, f"no trial: {trial}")
        return trial.name

    def read_request(self, name):
        return vizier_service_pb2.GetTrialRequest(name=name).SerializeToString()

    def read(self, request, reply):
        trial = study_pb2.Trial.FromString(reply)
        name = vizier_service_pb2.GetTrialRequest.FromString(request).name
        adapter.require(trial.name == name and trial.parameters, f"{name} was asked for: {trial}")


if __name__ == "__main__":
    adapter.run(Vizier())
