"""The entry point of the operator's container: `python -m disagg_operator`."""

import sys

from disagg_operator.main import main

sys.exit(main())
