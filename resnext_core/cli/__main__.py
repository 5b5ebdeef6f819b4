"""``python -m resnext_core.cli`` is ``resnext-run``; launchers start ranks this way."""

import sys

from resnext_core.children import note_end
from resnext_core.cli.main import main

code = main()
note_end(code)
sys.exit(code)
