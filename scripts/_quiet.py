"""Imported first by each command: Ctrl-C then ends the process at once, without a traceback.

This applies while torch and other packages are imported; `run_command` restores Python's handler. If SIGINT is
ignored, it stays ignored.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
