"""Several processes of one command, as torchrun starts them, but in no time: from a server that has imported the program already."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from repro.distributed import end_at_once
from repro.run import __main__ as run_module


def new_store():
    """Makes what processes meet by."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Processes:
    """Processes that run one function, each with its rank; what they say goes to one file.

    Like torchrun's agent the test keeps the store by which they meet; unlike torchrun it does not end the others where one fails: they must do it themselves.

    Args:
        count: How many.
        log: What they write on stdout and stderr is added to it.
        call: A function of a module; its result is the exit code.
        arguments: Of the function.
        store: Of earlier processes, with what they left in it, as torchrun's may be where it starts them anew; None for a new one.
    """

    def __init__(self, count, log, call, *arguments, store=None):
        self.log = Path(log)
        self._store = store or new_store()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "repro.run.__main__", "torch._dynamo"])
        environment = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self.processes = []
        for rank in range(count):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_run, args=(own, str(log), call, arguments))
            process.start()
            self.processes.append(process)

    def end(self, seconds=120):
        """Waits for all; returns their exit codes, None for one that did not end, whose threads then tell the log where they are."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process, code in zip(self.processes, codes, strict=True):
            if code is None:
                os.kill(process.pid, signal.SIGUSR1)
                process.join(1)
            process.kill()
        return codes

    def alive(self):
        return all(process.is_alive() for process in self.processes)

    def send(self, rank, number):
        os.kill(self.processes[rank].pid, number)

    def said(self):
        return self.log.read_text()

    def told(self):
        """Lists the lines that tell why the command ended."""
        return [line for line in self.said().splitlines() if line.startswith(("error: ", "interrupted; "))]


def _run(environment, log, call, arguments):
    os.setsid()
    multiprocessing.process._parent_process = None  # as a program of its own, which is nobody's worker
    os.environ |= environment
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.register(signal.SIGUSR1, file)
    # Of the server's, which is the test's.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    code = call(*arguments)
    end_at_once(code)
    sys.exit(code)


def program(*command):
    """Runs `repro.run`."""
    return run_module.main(list(command))
