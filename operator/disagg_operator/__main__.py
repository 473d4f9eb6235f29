"""`python -m disagg_operator`: the operator's container. `--version` imports nothing else."""

import sys

from disagg_wire.version import VERSION

if sys.argv[1:] == ["--version"]:
    print(f"disagg-operator {VERSION}")
else:
    from disagg_operator.main import main

    sys.exit(main())
