"""What every test may count on."""

from __future__ import annotations

import signal

# A shell that starts the suite in the background has it ignore Ctrl-C, and with it every process that the suite starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
