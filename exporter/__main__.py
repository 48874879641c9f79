"""`python -m exporter` is `tsformer`."""

import sys

from exporter.cli import main

sys.exit(main())
