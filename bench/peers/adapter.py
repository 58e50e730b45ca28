"""What bench/peers asks of each service: to run, to say what to send, and to judge what came back.

An adapter is a script that runs in its service's own virtual environment:

    NAME_adapter.py methods                        prints the methods that are called, and versions, as JSON
    NAME_adapter.py serve FOLDER                   runs the service on a new SQLite file in FOLDER until it is ended;
                                                   FOLDER/address says where it listens
    NAME_adapter.py creations ADDRESS FILE COUNT   writes COUNT requests that create, or one that may be sent again
    NAME_adapter.py reads EXCHANGES FILE           judges creations and their replies, writes the requests that read
                                                   what they made, prints how many things that is
    NAME_adapter.py judge EXCHANGES                judges reads and their replies, prints their number
    NAME_adapter.py stored FOLDER                  prints how many things the SQLite file holds

FILEs hold messages as bench/load/raw_calls.h says; EXCHANGES holds each reply behind its request.
"""

import importlib.metadata
import json
import os
import random
import socket
import sqlite3
import struct
import sys


def write_messages(path, messages):
    with open(path, "wb") as file:
        for message in messages:
            file.write(struct.pack("<I", len(message)) + message)


def read_messages(path):
    with open(path, "rb") as file:
        data = file.read()
    at, messages = 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        messages.append(data[at + 4:at + 4 + length])
        at += 4 + length
    return messages


def exchanges(path):
    messages = read_messages(path)
    return zip(messages[::2], messages[1::2])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def announce(folder, address):
    """Says where the service listens, or will in a moment."""
    aside = os.path.join(folder, "address.new")
    with open(aside, "w") as file:
        file.write(address)
    os.rename(aside, os.path.join(folder, "address"))


def require(condition, what):
    if not condition:
        sys.exit(f"{sys.argv[0]}: {what}")


class Adapter:
    """Its subclass has serve, creations, created, read_request, read and packages."""

    # Distributions whose versions are told.
    packages = ()
    # Full names: /package.Service/Method.
    create_method = read_method = None
    # Below the folder that serve was given.
    database = None
    # Of the SQLite file: what holds one row for each thing created.
    table = None

    def serve(self, folder):
        """Runs the service, in this process or in its children, until it is ended."""
        raise NotImplementedError

    def creations(self, address, count):
        """Makes what creations need and returns `count` requests, or one if it may be repeated."""
        raise NotImplementedError

    def created(self, request, reply):
        """The name of what was made. Ends the program if the reply is no success."""
        raise NotImplementedError

    def read_request(self, name):
        raise NotImplementedError

    def read(self, request, reply):
        """Ends the program unless the reply is what the request names."""
        raise NotImplementedError

    def stored(self, folder):
        path = os.path.join(folder, self.database)
        database = sqlite3.connect(path)
        try:
            return {"stored": database.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0],
                    "journal_mode": database.execute("PRAGMA journal_mode").fetchone()[0]}
        finally:
            database.close()


def run(adapter):
    verb, arguments = sys.argv[1], sys.argv[2:]
    if verb == "methods":
        print(json.dumps({"create": adapter.create_method, "read": adapter.read_method,
                          "versions": {p: importlib.metadata.version(p) for p in adapter.packages}}))
    elif verb == "serve":
        adapter.serve(*arguments)
    elif verb == "creations":
        address, path, count = arguments
        write_messages(path, adapter.creations(address, int(count)))
    elif verb == "reads":
        source, path = arguments
        names = [adapter.created(*exchange) for exchange in exchanges(source)]
        require(len(set(names)) == len(names), f"{len(names) - len(set(names))} creations made nothing new")
        # In no order of the store's.
        random.Random(1).shuffle(names)
        write_messages(path, [adapter.read_request(name) for name in names])
        print(json.dumps({"created": len(names)}))
    elif verb == "judge":
        count = 0
        for exchange in exchanges(*arguments):
            adapter.read(*exchange)
            count += 1
        print(json.dumps({"judged": count}))
    elif verb == "stored":
        print(json.dumps(adapter.stored(*arguments)))
    else:
        sys.exit(__doc__)
