"""Runs a program on a terminal of its own and types at it: terminal.py KEYS PROGRAM [ARGUMENT...].

Each `.` of KEYS is for a line that the program prints first; `C` is Ctrl-C, `D` Ctrl-D. Prints what the program printed, and how it ended.
"""
import os
import pty
import signal
import sys

pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where whoever runs the tests ignores it
    os.execvp(sys.argv[2], sys.argv[2:])
said = b""


def read():
    """What is there; nothing at the end."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # EIO: nobody has the terminal open any more
        return b""


for key in sys.argv[1]:
    if key == ".":
        wanted = said.count(b"\n") + 1
        while said.count(b"\n") < wanted:
            part = read()
            if not part:
                sys.exit(f"it ended early: {said!r}")
            said += part
    else:
        os.write(terminal, {"C": b"\x03", "D": b"\x04"}[key])
while part := read():
    said += part
print(said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
