"""``python -m resnext_core.cli`` is ``resnext-run``; launchers start ranks this way."""

import sys

from resnext_core.cli.main import main

sys.exit(main())
