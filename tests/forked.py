"""
What conftest.run talks to: runs scripts as `python script ...` would, each in a process of its own
that is forked from this one. It has imported torch, which takes three seconds anew each time: half
of the time of all tests.
"""

import importlib
import json
import os
import runpy
import sys

importlib.import_module("torch._dynamo")  # torch, and what every optimizer imports


def jobs():
    """
    Forks for every line of stdin; the child gets the line's job, the parent tells its exit status.
    """
    for line in sys.stdin:
        child = os.fork()
        if not child:
            yield json.loads(line)
            return
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


for job in jobs():
    os.chdir(job["cwd"])
    for fd, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)
    script, *sys.argv[1:] = job["args"]
    # an error ends this program as it would end the script
    if script == "-c":
        sys.path[0] = ""
        sys.argv.pop(1)
        exec(job["args"][1], {"__name__": "__main__"})
    elif script == "-m":
        sys.path[0] = os.getcwd()
        sys.argv.pop(0)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        sys.argv[0] = script
        runpy.run_path(script, run_name="__main__")
