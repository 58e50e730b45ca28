#!/usr/bin/env python3
"""Starts each service on SQLite, one at a time, and puts the same load on the same kind of calls. bench/peers/run calls it.

A measurement is one method under CALLERS closed loops of build/release/bin/qpruner_raw_load_bench for SECONDS: first
creations, then reads of what they made, in random order. A round measures every service, each started anew on a new
file; every other round goes in the opposite order. All replies to creations and up to 100 of each caller's to reads
are judged, and in the end the file must hold as many things as were answered. Prints a table of medians over the
rounds, then each measurement as a line of JSON. Fails when a service lost or doubled something, or could not be
measured.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = pathlib.Path(os.environ.get("QPRUNER_BIN_DIR", ROOT / "build/release/bin"))
OURS = "qpruner"
OPERATIONS = ("create", "read")
# Of reads: so many replies of each caller are judged.
JUDGED_READS = 100
WARM_UP_SECONDS = 1


class Failed(Exception):
    pass


class Service:
    """One service of one round: a process of its own, in a new folder on the disk that is measured."""

    def __init__(self, name, venv, folder):
        self.name = name
        self.command = [str(venv / "bin/python"), str(HERE / f"{name}_adapter.py")]
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"qpruner-peers-{name}-", dir=folder))
        self.process = None

    def ask(self, *arguments):
        """What the adapter prints for a verb, read as JSON; None if it prints nothing."""
        done = subprocess.run([*self.command, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{self.name}: {arguments[0]}: {done.stderr[-2000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def start(self, limit=180):
        with open(self.folder / "log", "wb") as log:
            # A group of its own, which stop ends as a whole.
            self.process = subprocess.Popen([*self.command, "serve", str(self.folder)], stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + limit
        while not (self.folder / "address").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{self.name} did not start: {self.log()}")
            time.sleep(0.05)
        return (self.folder / "address").read_text()

    def log(self):
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def stop(self):
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, end)
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break

    def close(self):
        if self.process:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def put_load(service, address, method, requests, replies, options, *arguments):
    command = [BIN / "qpruner_raw_load_bench", "--address", address, "--method", method, "--requests", requests,
               "--replies", replies, "--server-pid", service.process.pid, "--callers", options.callers, "--channels",
               options.channels, "--seconds", options.seconds, "--warm-up-seconds", WARM_UP_SECONDS, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{service.name}: {method}: {done.stderr[-1000:]}{done.stdout}\n{service.log()}")
    return json.loads(done.stdout)


def measure(name, venv, options, scratch):
    """The two measurements of one service, judged."""
    service = Service(name, venv, options.folder)
    try:
        methods = service.ask("methods")
        address = service.start()
        requests, replies = scratch / "requests", scratch / "replies"
        syncs = syncs_per_second(options.folder)
        # More than the fastest service can use up.
        service.ask("creations", address, requests, int(options.most_creations * (options.seconds + WARM_UP_SECONDS)))
        create = put_load(service, address, methods["create"], requests, replies, options)
        created = service.ask("reads", replies, requests)["created"]
        read = put_load(service, address, methods["read"], requests, replies, options, "--kept-replies", JUDGED_READS)
        judged = service.ask("judge", replies)["judged"]
        service.stop()
        kept = service.ask("stored", service.folder)
        # A creation that failed at the caller may have been stored all the same.
        if not created <= kept["stored"] <= created + create["failed"]:
            raise Failed(f"{name}: {created} creations were answered, {kept['stored']} things are stored")
        create.update(operation="create", method=methods["create"], created=created, disk_syncs_per_second=syncs, **kept)
        read.update(operation="read", method=methods["read"], judged=judged)
        return [{"service": name, "versions": methods["versions"], **line} for line in (create, read)]
    finally:
        service.close()


def syncs_per_second(folder, seconds=1.0):
    """How often the disk makes one small write durable: what a commit that syncs alone can hope for at most."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        begin, count = time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            file.write(b"x" * 512)
            file.flush()
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.monotonic() - begin)


def medians(lines, name, operation):
    of = [line for line in lines if line["service"] == name and line["operation"] == operation]
    keys = ("rate", "p50_ms", "p99_ms", "server_cores", "calls_per_server_cpu_second", "generator_cores", "failed")
    return {key: statistics.median(line[key] for line in of) for key in keys} if of else None


def print_table(lines, names):
    print(f"{'operation':45} {'calls/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'server':>7} {'per CPU s':>9} {'gener.':>7} "
          f"{'failed':>6}  ours/theirs: calls/s, per CPU s")
    for operation in OPERATIONS:
        ours = medians(lines, OURS, operation)
        for name in names:
            of = medians(lines, name, operation)
            if not of:
                continue
            method = next(line["method"] for line in lines if line["service"] == name and line["operation"] == operation)
            ratios = "" if name == OURS or not ours else (
                f"  {ours['rate'] / of['rate']:.1f} x, "
                f"{ours['calls_per_server_cpu_second'] / max(of['calls_per_server_cpu_second'], 1e-9):.1f} x")
            print(f"{name + ' ' + method.rsplit('/', 1)[1]:45} {of['rate']:9.0f} {of['p50_ms']:9.2f} {of['p99_ms']:9.2f} "
                  f"{of['server_cores']:7.2f} {of['calls_per_server_cpu_second']:9.0f} {of['generator_cores']:7.2f} "
                  f"{of['failed']:6.0f}{ratios}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", action="append", default=[], metavar="NAME=FOLDER", help="of each service, in order")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--channels", type=int, default=4, help="connections that the callers share")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=str(ROOT / "build"), help="of the SQLite files: on the disk to be measured")
    parser.add_argument("--most-creations", type=int, default=20000, help="a second, that a service is prepared for")
    parser.add_argument("--json", help="a file that gets the lines of JSON as well")
    options = parser.parse_args()
    venvs = {name: pathlib.Path(folder) for name, folder in (pair.split("=", 1) for pair in options.venv)}
    lines, failures = [], []
    # Requests and replies stay off the disk that is measured.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        for number in range(options.rounds):
            load = " ".join(f"{average:.2f}" for average in os.getloadavg())
            print(f"round {number + 1} of {options.rounds}: load {load}, the disk does "
                  f"{syncs_per_second(options.folder):.0f} syncs/s", flush=True)
            for name in list(venvs)[::-1 if number % 2 else 1]:
                try:
                    lines += [{"round": number + 1, **line} for line in
                              measure(name, venvs[name], options, pathlib.Path(scratch))]
                except Failed as failure:
                    failures.append(str(failure))
                    print(f"FAILED: {failure}", file=sys.stderr, flush=True)
    for name in venvs:
        of = next((line["versions"] for line in lines if line["service"] == name and line["versions"]), {})
        print(f"{name}: {', '.join(f'{package} {version}' for package, version in of.items()) or 'this tree'}")
    print_table(lines, list(venvs))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    print(text, end="")
    if options.json:
        pathlib.Path(options.json).write_text(text)
    for failure in failures:
        print(f"FAILED: {failure.splitlines()[0]}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
