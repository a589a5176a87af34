"""`python -m ldznet_core`: the same program as the console script `ldznet`."""

from .cli import main

raise SystemExit(main())
