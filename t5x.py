"""`import t5x`, and `python -m t5x.train`, without `import selective_t5x`.

This module is installed beside the package and gives way to the real T5X,
wherever that is. Python itself prefers a package of the name t5x in the same
folder or in one before it; `selective_t5x.engine_finder` finds it elsewhere.
Otherwise it puts the embedded engine in its own place.
"""

import importlib
import sys

# engine_finder decides, and Python returns what is under the name afterwards.
del sys.modules[__name__]
importlib.import_module('selective_t5x')
importlib.import_module(__name__)
