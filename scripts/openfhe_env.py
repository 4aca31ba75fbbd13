"""Make the small Python environment in which OpenFHE loads, before or after installation.

The same as ``python -m fedjax_secure.he.openfhe.env``, without importing the toolkit.
"""

import runpy
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parent.parent / "fedjax_secure" / "he" / "openfhe" / "env.py"

if __name__ == "__main__":
    runpy.run_path(str(ENVIRONMENT), run_name="__main__")
