"""Runs verbs of the tool in forks of one process that imported it, each with a fault on demand.

A line of JSON on the standard input is a run: ``arguments``, ``root``, and what happens ``at``
which of its operations on files below the root: ``how`` "kill" ends the process before it, and
"full" lets it and all that write after it find the disk full. ``most`` bytes a file may have. The
answer is a line of JSON: the exit ``code``, ``said`` on the standard error, how many ``operations``
there were.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from typing import Any

import sparseflash.cli.build
import sparseflash.cli.device
import sparseflash.cli.model
import sparseflash.pipeline.stages  # noqa: F401 - what a fork need not import
from sparseflash.cli import main

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
WRITES = ("open", "os.mkdir", "os.rename")


class Fault:
    """Counts operations, and lets one of them go wrong."""

    def __init__(self, root: str, at: int, how: str) -> None:
        self.count = 0
        self._root, self._at, self._how = root, at, how

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if event != "subprocess.Popen":
            if event not in CHANGES and not (event == "open" and values[2] & 0o103):
                return
            path = os.fspath(values[0]) if not isinstance(values[0], int) else ""
            if not os.fsdecode(path).startswith(self._root):
                return
        self.count += 1
        if self._how == "kill" and self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "full" and 0 < self._at <= self.count and event in WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(values[0]))


def child(run: dict[str, Any], report: int) -> None:
    os.environ["SPARSEFLASH_ROOT"] = run["root"]
    sys.argv = ["sparseflash", *run["arguments"]]
    fault = Fault(f"{run['root']}/", run["at"], run["how"])
    sys.addaudithook(fault)
    if run["most"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run["most"], run["most"]))
    try:
        main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(report, str(fault.count).encode())
    os._exit(code)


def whole(fd: int) -> bytes:
    """What comes until nobody can write to it any more, the tool's own processes among them."""
    with os.fdopen(fd, "rb") as f:
        return f.read()


for line in sys.stdin:
    (counted, report), (heard, error) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(error, 2)
        os.close(error)
        child(json.loads(line), report)
    os.close(report)
    os.close(error)
    said = whole(heard).decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    operations = int(whole(counted) or 0)
    print(json.dumps({"code": code, "said": said, "operations": operations}), flush=True)
