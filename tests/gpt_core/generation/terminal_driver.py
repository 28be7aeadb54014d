"""Run a script on the terminal that is its standard input, so that Ctrl-C reaches it; run by test_chat.py.

python terminal_driver.py SCRIPT [ARGUMENT…]
"""

import fcntl
import runpy
import sys
import termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the controlling terminal of this session
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
