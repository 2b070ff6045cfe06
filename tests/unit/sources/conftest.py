"""NumPy's testing module runs lscpu when first imported, and scikit-learn imports it: here, before that is refused."""

import numpy.testing  # noqa: F401
