"""`python -m exporter` runs `tsformer`."""

import sys

from tsformer import main

sys.exit(main())
