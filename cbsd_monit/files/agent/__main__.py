"""The agent on a node, as `wake` runs it. See commands.py: unlike this file it is compiled once."""

import sys

from commands import main

sys.exit(main(sys.argv[1:]))
