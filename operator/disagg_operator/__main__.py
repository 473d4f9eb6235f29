"""`python -m disagg_operator`: the operator's container."""

import sys

from disagg_operator.main import main

sys.exit(main())
