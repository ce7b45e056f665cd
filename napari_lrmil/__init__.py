"""Low-resolution multiple instance learning for whole-slide images, distilled from a high-resolution teacher.

Research software: nothing it says is a diagnosis. Importing this package loads neither torch nor Qt.
"""

__version__ = "0.1.0"
