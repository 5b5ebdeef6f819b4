"""``python -m resnext_core.cli`` is ``resnext-run``; launchers start ranks this way."""

import sys

from resnext_core.cli.main import main
from resnext_core.ranks.children import note_end

code = main()
note_end(code)
sys.exit(code)
