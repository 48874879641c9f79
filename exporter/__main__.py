"""`python -m exporter` runs `tsformer`."""

import sys

from exporter.cli import main

sys.exit(main())
