"""cbsd_monit's agent on a node; `wake` runs it: see commands.py, which unlike this file is compiled only once."""

import sys

from commands import main

sys.exit(main(sys.argv[1:]))
