"""The kit's name and version. Every layer can import them, and the package is built with the version."""

VERSION = "0.1.0"
PACKAGE = __name__.split(".", 1)[0]
"""What the kit is imported as; a class whose module begins otherwise is foreign."""
DISTRIBUTION = PACKAGE.replace("_", "-")
"""What pip calls it."""
