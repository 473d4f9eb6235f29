"""The entry point of the operator's container: `python -m disagg_operator`.

`--version` imports nothing else.
"""

import sys

from disagg_wire.version import VERSION

if sys.argv[1:] == ["--version"]:
    print(f"disagg-operator {VERSION}")
else:
    from disagg_operator.main import main

    sys.exit(main())
