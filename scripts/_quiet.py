"""What each door imports first: from then on Ctrl-C ends the process at once and without a traceback.

So it should while torch and the rest are imported; `open_door` brings Python's own handler back. An ignored Ctrl-C
stays ignored.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
