#!/usr/bin/env python3
"""Intel's Neural Solution: SubmitTask and GetTaskById.

A task is a compression of a model that the service queues, as a job is here. Two things are not as its launcher does
them, both in its favour:

2.6 is measured: the gRPC front end of 2.6.1, the last one, answers "failed" to every task, since it looks for the
fields of the message in __dict__, where protobuf keeps none.

The task monitor, which SubmitTask tells of each task, runs without the scheduler: the two threads share a cursor, and
within seconds of load one of 2.4's, whose code for it is the same, ended with "sqlite3.ProgrammingError: Recursive use
of cursors not allowed". Submissions of another run hung.
"""

import os
import subprocess
import sys

from neural_solution.backend.task_db import TaskDB
from neural_solution.backend.task_monitor import TaskMonitor
from neural_solution.frontend.gRPC.proto import neural_solution_pb2

import adapter

SERVICE = neural_solution_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name


class NeuralSolution(adapter.Adapter):
    packages = ("neural-solution", "grpcio", "protobuf")
    create_method = f"/{SERVICE}/SubmitTask"
    read_method = f"/{SERVICE}/GetTaskById"
    database = "db/task.db"
    table = "task"

    def serve(self, folder):
        port, tasks = adapter.free_port(), adapter.free_port()
        monitor = TaskMonitor(tasks, TaskDB(os.path.join(folder, self.database)))
        subprocess.Popen([sys.executable, "-m", "neural_solution.frontend.gRPC.server", "--grpc_api_port", str(port),
                          "--task_monitor_port", str(tasks), "--workspace", folder])
        adapter.announce(folder, f"127.0.0.1:{port}")
        monitor.wait_new_task()

    def creations(self, address, count):
        return [neural_solution_pb2.Task(script_url="load", optimized=True, arguments=["--bits=4"], approach="static",
                                         requirements=[], workers=1).SerializeToString()]

    def created(self, request, reply):
        task = neural_solution_pb2.TaskResponse.FromString(reply)
        adapter.require(task.status == "successfully", f"no task: {task}")
        return task.task_id

    def read_request(self, name):
        return neural_solution_pb2.TaskId(task_id=name).SerializeToString()

    def read(self, request, reply):
        task = neural_solution_pb2.TaskStatus.FromString(reply)
        adapter.require(task.status == "pending", f"not the task that was asked for: {task}")


if __name__ == "__main__":
    adapter.run(NeuralSolution())
